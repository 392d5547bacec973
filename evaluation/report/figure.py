"""The overview of one model as a picture: what each condition scores in every task, with its interval."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from logitbank.errors import ConfigError, StoreError
from logitbank.evaluation.report.charts import COLOURS, Chart, Series, arms, bounds_of
from logitbank.evaluation.report.labels import Row, ordered_columns, ordered_models, ordered_tasks
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.write import write_whole

MEAN = "mean of tasks"
# What a format's file says of itself; none says when it was made, so that the same rows make the same file.
ABOUT: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
INK = "#6e7781"  # reads on white and on black: pages show the picture on either
ROW_INCHES, WIDTH_INCHES = 0.5, 8.0
COLOURED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = {
    **dict.fromkeys(COLOURED, INK),
    **{"svg.fonttype": "none", "svg.hashsalt": "logitbank", "font.family": "sans-serif", "font.size": 10},
}


def write_figure(results: Results, output: Path, model: str | None = None) -> None:
    """Draw a model's overview into a file.

    Args:
        results: what is drawn.
        output: its suffix says how: `.svg`, `.png` or `.pdf`.
        model: as the tables call it, or in full; None if there is only one.

    Raises:
        ConfigError: another suffix, no such model, several without `model`, or no matplotlib.
        StoreError: no metric rows.
        OutputError: a place that cannot be written.
    """
    if output.suffix.lower() not in ABOUT:
        raise ConfigError(f"--output: expected a name that ends in {', '.join(ABOUT)}, got {output}")
    write_whole(output, _draw(overview_chart(results, model), output.suffix.lower()))


def overview_chart(results: Results, model: str | None = None) -> Chart:
    """A model's overview as data: a series for each condition, over its tasks and their mean, in %.

    Raises:
        ConfigError: no such model, or several without `model`.
        StoreError: no metric rows.
    """
    if not results.main_averages:
        raise StoreError("--results: contains no scores of answers; run evaluate-model first")
    chosen, labels = _model(results, model), results.labels
    means = {labels.column(row): row for row in results.main_averages if row["model"] == chosen}
    own = {column: results.primary_tasks(row) for column, row in means.items()}
    tasks = ordered_tasks(row["task"] for rows in own.values() for row in rows)
    metric = {row["task"]: row["metric"] for rows in own.values() for row in rows}
    names = {task: f"{task} ({metric[task]})" for task in tasks}
    series = []
    for colour, column in enumerate(ordered_columns(list(means.values()), labels)):
        by_task = {row["task"]: row for row in own[column]}
        places = [task for task in tasks if task in by_task]
        heights = [100 * by_task[task]["language_mean"] for task in places]
        bounds = [bounds_of(results.task_interval(by_task[task])) for task in places]
        mean: Row = means[column]
        if len(tasks) > 1:
            heights.append(100 * mean["task_mean"])
            bounds.append(bounds_of(results.mean_interval(mean, "task_mean")))
        at = [*(names[task] for task in places), *([MEAN] if len(tasks) > 1 else [])]
        series.append(Series(column, at, heights, bounds, colour))
    categories = [*names.values(), *([MEAN] if len(tasks) > 1 else [])]
    return Chart("overview", f"{labels.models[chosen]}: score in %, with 95% intervals", "points", categories, series)


def said(chart: Chart) -> str:
    """The chart's numbers in words, for readers who cannot see it: "base: nli (accuracy) 12.0, ...; finetuned: ..."."""
    parts = []
    for series in chart.series:
        values = ", ".join(f"{place} {value:.1f}" for place, value in zip(series.x, series.y, strict=True))
        parts.append(f"{series.name}: {values}")
    return "; ".join(parts)


def _model(results: Results, wanted: str | None) -> str:
    """The model to draw, in full."""
    short = {results.labels.models[model]: model for model in ordered_models(results.main_averages)}
    if wanted is None and len(short) == 1:
        return next(iter(short.values()))
    if wanted in short.values():
        return str(wanted)
    if wanted not in short:
        got = "several models" if wanted is None else wanted
        raise ConfigError(f"--model: expected one of {', '.join(short)}, got {got}")
    return short[wanted]


def _draw(chart: Chart, suffix: str) -> bytes:
    """Dots with intervals: a line of them for each category, on no background."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError('figure: needs matplotlib, which is not installed; pip install "logitbank[plots]"') from None

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 1.0 + ROW_INCHES * len(chart.categories)), layout="constrained")
        axes = figure.subplots()
        _dots(axes, chart)
        axes.set_xlabel(chart.caption)
        figure.legend(loc="outside upper center", ncols=len(chart.series), frameon=False, handletextpad=0.3)
        about = dict(ABOUT[suffix])
        if suffix == ".svg":
            about |= {"Title": chart.caption, "Description": said(chart)}
        file = io.BytesIO()
        figure.savefig(file, format=suffix[1:], dpi=150, transparent=True, metadata=about)
    return file.getvalue()


def _dots(axes: Any, chart: Chart) -> None:
    count = len(chart.categories)
    step = 0.7 / max(1, len(chart.series))
    for number, series in enumerate(chart.series):
        shift = ((len(chart.series) - 1) / 2 - number) * step  # the first is uppermost
        places = [count - 1 - chart.categories.index(str(x)) + shift for x in series.x]
        reach = arms(series)
        axes.errorbar(
            series.y,
            places,
            xerr=[reach["below"], reach["above"]],
            fmt="o",
            markersize=5,
            elinewidth=1.4,
            color=COLOURS[series.colour % len(COLOURS)],
            label=series.name,
            clip_on=False,
        )
    for line in range(1, count):
        axes.axhline(line - 0.5, color=INK, linewidth=0.4, alpha=0.5)
    axes.set_yticks(range(count), list(reversed(chart.categories)))
    if MEAN in chart.categories:
        axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_ylim(-0.5, count - 0.5)
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
