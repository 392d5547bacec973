"""Charts as PNG bytes, for Markdown; matplotlib draws off screen."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from logitbank.evaluation.report.charts import COLOURS, Chart, Panel, arms


def draw_png(chart: Chart) -> bytes:
    """The chart as a PNG file."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    if chart.kind == "heat":
        _heat(figure, chart.panels)
    elif chart.kind == "lines":
        _lines(figure, chart)
    else:
        _beside(figure, chart)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _beside(figure: Figure, chart: Chart) -> None:
    """Bars or points of all series beside one another over each category."""
    axes = figure.subplots()
    width = 0.8 / len(chart.series)
    for number, series in enumerate(chart.series):
        shift = (number - (len(chart.series) - 1) / 2) * width
        places = [chart.categories.index(str(x)) + shift for x in series.x]
        colour = COLOURS[series.colour % len(COLOURS)]
        reach = arms(series)
        errors = np.array([reach["below"], reach["above"]])
        if chart.kind == "bars":
            axes.bar(places, series.y, width, label=series.name, color=colour)
            axes.errorbar(places, series.y, errors, fmt="none", ecolor="#333333", elinewidth=1)
        else:
            axes.errorbar(places, series.y, errors, fmt="o", color=colour, elinewidth=1, label=series.name)
    if chart.kind == "points":
        axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(chart.categories)), chart.categories)
    axes.set_xlim(-0.6, len(chart.categories) - 0.4)
    axes.set_ylabel(chart.y_title)
    figure.legend(loc="outside right upper", fontsize="x-small")


def _lines(figure: Figure, chart: Chart) -> None:
    axes = figure.subplots()
    for series in chart.series:
        style = "--" if series.dashed else "-"
        colour = COLOURS[series.colour % len(COLOURS)]
        x = [float(place) for place in series.x]
        axes.plot(x, series.y, style, marker="o", markersize=3, label=series.name, color=colour)
    axes.set_xlabel(chart.x_title)
    axes.set_ylabel(chart.y_title)
    figure.legend(loc="outside right upper", fontsize="x-small")


def _heat(figure: Figure, panels: Sequence[Panel]) -> None:
    figure.set_size_inches(max(4, 1.1 + 2.2 * len(panels)), 0.9 + 0.42 * len(panels[0].rows))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(grid, panels, strict=True):
        values = [[float("nan") if value is None else value for value in row] for row in panel.values]
        axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for y, row in enumerate(panel.values):
            for x, value in enumerate(row):
                if value is not None:
                    colour = "white" if value < 60 else "black"
                    axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(panel.columns)), panel.columns, fontsize="small")
        axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize="small")
        axes.set_title(panel.title, fontsize="small")
