"""Charts as Plotly figures, for the page: a pointer over a value shows it with its interval.

Plotly reads some markup in its texts; names come from configurations and files, so they are escaped.
"""

from __future__ import annotations

import html
import json
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from logitbank.evaluation.report.charts import COLOURS, Chart, Series, arms

HEIGHT = 380  # pixels
TOP, BOTTOM = 60, 50  # above a plot, where Plotly's buttons are, and below it
ROW, BETWEEN = 30, 60  # of a heat map's row, and between two panels
SCALE = "Viridis"


def library() -> str:
    """Plotly's JavaScript, to be part of the page."""
    return str(get_plotlyjs())


def figure_json(chart: Chart) -> dict[str, Any]:
    """The chart as Plotly's `data` and `layout`."""
    figure = _heat(chart) if chart.kind == "heat" else _axes(chart)
    figure.update_layout(
        template="none",
        margin={"l": 50, "r": 15, "t": TOP, "b": BOTTOM},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"align": "left"},
    )
    return dict(json.loads(figure.to_json()))


def _axes(chart: Chart) -> go.Figure:
    figure = go.Figure([_trace(chart, series) for series in chart.series])
    below = -0.3 if chart.x_title else -0.15  # of the plot's height: under the ticks and the axis' title
    figure.update_layout(
        height=HEIGHT,
        barmode="group",
        scattermode="group" if chart.kind == "points" else "overlay",  # side by side only over categories
        showlegend=True,
        legend={"orientation": "h", "y": below, "yanchor": "top", "x": 0},
    )
    axis = {"title": {"text": _text(chart.x_title)}, "automargin": True}
    if chart.kind != "lines":
        axis |= {"type": "category", "categoryorder": "array", "categoryarray": [_text(c) for c in chart.categories]}
    figure.update_xaxes(**axis)
    figure.update_yaxes(title={"text": _text(chart.y_title)}, automargin=True, zeroline=True, gridcolor="#ddd")
    return figure


def _trace(chart: Chart, series: Series) -> go.Bar | go.Scatter:
    reach = arms(series)
    colour = COLOURS[series.colour % len(COLOURS)]
    bounds = series.bounds or [None] * len(series.y)
    digits = ".4f" if chart.y_title == "nats" else ".1f"
    said = ["" if bound is None else f" [{bound[0]:.1f}, {bound[1]:.1f}]" for bound in bounds]
    if series.said:
        said = [f"{bound} ({_text(text)})" for bound, text in zip(said, series.said, strict=True)]
    shared = {
        "name": _text(series.name),
        "x": [_text(x) if isinstance(x, str) else x for x in series.x],
        "y": list(series.y),
        "customdata": said,
        "hovertemplate": f"%{{x}}<br>{_text(series.name)}: %{{y:{digits}}}%{{customdata}}<extra></extra>",
    }
    errors = {
        "type": "data",
        "symmetric": False,
        "array": reach["above"],
        "arrayminus": reach["below"],
        "thickness": 1,
        "width": 3,
        "visible": any(bound is not None for bound in bounds),
    }
    if chart.kind == "bars":
        return go.Bar(**shared, marker={"color": colour}, error_y=errors | {"color": "#333"})
    if chart.kind == "points":
        return go.Scatter(**shared, mode="markers", marker={"color": colour, "size": 9}, error_y=errors)
    dash = "dash" if series.dashed else "solid"
    return go.Scatter(**shared, mode="lines+markers", line={"color": colour, "dash": dash}, marker={"size": 6})


def _heat(chart: Chart) -> go.Figure:
    """Panels below one another, so that they stay readable on a narrow screen."""
    panels = chart.panels
    titles = [_text(panel.title) for panel in panels]
    sizes = [ROW * len(panel.rows) for panel in panels]
    height = sum(sizes) + BETWEEN * (len(panels) - 1)
    spacing = BETWEEN / height if len(panels) > 1 else 0
    figure = make_subplots(rows=len(panels), cols=1, subplot_titles=titles, row_heights=sizes, vertical_spacing=spacing)
    for number, panel in enumerate(panels, start=1):
        trace = go.Heatmap(
            x=[_text(name) for name in panel.columns],
            y=[_text(name) for name in panel.rows],
            z=[list(row) for row in panel.values],
            zmin=0,
            zmax=100,
            colorscale=SCALE,
            showscale=False,  # the values stand in the cells
            texttemplate="%{z:.0f}",
            hovertemplate=f"%{{y}}/%{{x}}<br>{_text(panel.title)}: %{{z:.1f}}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
        )
        figure.add_trace(trace, row=number, col=1)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(height=height + TOP + BOTTOM)
    return figure


def _text(text: str) -> str:
    return html.escape(text, quote=False)
