"""The plots of a report, as PNG bytes; matplotlib draws off screen and is imported only here."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitbank.evaluation.report.labels import (
    Labels,
    Row,
    key_of,
    ordered_columns,
    ordered_languages,
    ordered_models,
    ordered_tasks,
    short_names,
)
from logitbank.evaluation.report.result_tables import GAPS, Results, cell_key
from logitbank.storage.results.catalogue import Catalogue

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")


@dataclass(frozen=True)
class Plot:
    """One figure: file name without suffix, what it shows, and its bytes."""

    name: str
    caption: str
    png: bytes


def all_plots(catalogue: Catalogue, results: Results) -> list[Plot]:
    """Every plot that has something to show.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plots: list[Plot] = []
    for number, model in enumerate(ordered_models(results.averages)):
        label = results.labels.models[model]
        plots.append(_draw(f"bars-{number}", f"{label}: mean over languages, by task", _bars, results, model))
        plots.append(_draw(f"heatmap-{number}", f"{label}: every cell, in %", _heatmap, results, model))
        if any(row["model"] == model for row in results.task_gaps):
            caption = f"{label}: gaps in points, with paired 95% intervals where predictions are there"
            plots.append(_draw(f"gaps-{number}", caption, _gaps, results, model))
    if len(ordered_models(results.averages)) > 1:
        plots.append(_draw("models", "All models: task_language_mean, in %", _models, results))
    curves = catalogue.rows("SELECT * FROM checkpoint_curves ORDER BY step")
    for task in ordered_tasks(row["task"] for row in curves):
        own = [row for row in curves if row["task"] == task]
        if len({row["step"] for row in own}) > 1:
            plots.append(_draw(f"checkpoints-{task}", f"{task}: along training", _curve, own, "step", results.labels))
    sweep = catalogue.rows("SELECT *, '' AS variant FROM lambda_sweep ORDER BY lambda_distill")
    if len({row["lambda_distill"] for row in sweep}) > 1:
        plots.append(_draw("lambda-sweep", "Mean over languages against λ", _sweep, sweep))
    losses = catalogue.rows(
        "SELECT model, condition, step, metric, avg(value) AS value FROM training_log "
        "WHERE task = 'all' AND metric IN ('student_ce', 'teacher_ce') GROUP BY ALL ORDER BY step"
    )
    if losses:
        plots.append(
            _draw("cross-entropy", "Student (line) and teacher (dashed), nats per answer token", _losses, losses)
        )
    return plots


def _draw(name: str, caption: str, draw: Callable[..., None], *arguments: Any) -> Plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    draw(figure, *arguments)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return Plot(name, caption, file.getvalue())


def _bars(figure: Any, results: Results, model: str) -> None:
    own = [row for row in results.task_averages if row["model"] == model and row["is_primary"]]
    tasks, columns = ordered_tasks(row["task"] for row in own), ordered_columns(own, results.labels)
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        rows = {row["task"]: row for row in own if results.labels.column(row) == column}
        places = [tasks.index(task) + (number - (len(columns) - 1) / 2) * width for task in rows]
        heights = [100 * row["language_mean"] for row in rows.values()]
        errors = np.array([_errors(results, row) for row in rows.values()]).T
        axes.bar(places, heights, width, label=column, color=COLOURS[number % len(COLOURS)])
        axes.errorbar(places, heights, errors, fmt="none", ecolor="#333333", elinewidth=1)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("%")
    figure.legend(loc="outside right upper", fontsize="x-small")


def _errors(results: Results, row: Row) -> tuple[float, float]:
    """How far the interval reaches below and above the value, in points."""
    cells = [cell_key(cell) for cell in results.cells_of(row, task=row["task"], metric=row["metric"])]
    found, value = results.replicates.average(cells, row["metric"]), row["language_mean"]
    return (0.0, 0.0) if found is None else (max(0, 100 * (value - found.low)), max(0, 100 * (found.high - value)))


def _heatmap(figure: Any, results: Results, model: str) -> None:
    own = [row for row in results.cells if row["model"] == model and row["is_primary"]]
    tasks = ordered_tasks(row["task"] for row in own)
    languages = ordered_languages(row["language"] for row in own)
    columns = ordered_columns(own, results.labels)
    figure.set_size_inches(max(4, 1.1 + 2.2 * len(columns)), 0.9 + 0.42 * len(tasks))
    grid = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axes, column in zip(grid, columns, strict=True):
        cells = {(r["task"], r["language"]): 100 * r["value"] for r in own if results.labels.column(r) == column}
        values = [[cells.get((task, language), float("nan")) for language in languages] for task in tasks]
        axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    colour = "white" if value < 60 else "black"
                    axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(languages)), languages, fontsize="small")
        axes.set_yticks(range(len(tasks)), tasks, fontsize="small")
        axes.set_title(column, fontsize="small")


def _gaps(figure: Any, results: Results, model: str) -> None:
    own = [row for row in results.task_gaps if row["model"] == model]
    tasks = ordered_tasks(row["task"] for row in own)
    axes = figure.subplots()
    series = sorted({(GAPS.index(row["gap"]), row["gap"], row["variant"], row["setup"]) for row in own})
    width = 0.8 / len(series)
    for number, (_, gap, variant, setup) in enumerate(series):
        rows = {r["task"]: r for r in own if (r["gap"], r["variant"], r["setup"]) == (gap, variant, setup)}
        places = [tasks.index(task) + (number - (len(series) - 1) / 2) * width for task in rows]
        heights = [100 * row["difference"] for row in rows.values()]
        axes.bar(places, heights, width, label=f"{gap} {variant}".strip(), color=COLOURS[number % len(COLOURS)])
        for place, row in zip(places, rows.values(), strict=True):
            found = results.gap_interval(row)
            if found is not None:
                axes.plot([place, place], [100 * found.low, 100 * found.high], color="#333333", linewidth=1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("points")
    figure.legend(loc="outside right upper", fontsize="x-small")


def _models(figure: Any, results: Results) -> None:
    models, columns = ordered_models(results.averages), ordered_columns(results.averages, results.labels)
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        rows = [row for row in results.averages if results.labels.column(row) == column]
        places = [models.index(row["model"]) + (number - (len(columns) - 1) / 2) * width for row in rows]
        heights = [100 * row["task_language_mean"] for row in rows]
        axes.bar(places, heights, width, label=column, color=COLOURS[number % len(COLOURS)])
    axes.set_xticks(range(len(models)), [results.labels.models[model] for model in models])
    axes.set_ylabel("%")
    figure.legend(loc="outside right upper", fontsize="x-small")


def _curve(figure: Any, rows: Sequence[Row], x: str, labels: Labels) -> None:
    axes = figure.subplots()
    for number, key in enumerate(sorted({key_of(row) for row in rows})):
        own = [row for row in rows if key_of(row) == key]
        axes.plot(
            [row[x] for row in own],
            [100 * row["language_mean"] for row in own],
            marker="o",
            label=labels.series(own[0]),
            color=COLOURS[number % len(COLOURS)],
        )
    axes.set_xlabel(x)
    axes.set_ylabel("%")
    figure.legend(loc="outside right upper", fontsize="x-small")


def _sweep(figure: Any, rows: Sequence[Row]) -> None:
    names = short_names(row["model"] for row in rows)
    axes = figure.subplots()
    keys = sorted({(r["model"], r["setup"], r["condition"], r["task"]) for r in rows})
    for number, key in enumerate(keys):
        own = [r for r in rows if (r["model"], r["setup"], r["condition"], r["task"]) == key]
        axes.plot(
            [row["lambda_distill"] for row in own],
            [100 * row["language_mean"] for row in own],
            marker="o",
            label=f"{names[key[0]]} {key[2]} {key[3]}",
            color=COLOURS[number % len(COLOURS)],
        )
    axes.set_xlabel("λ")
    axes.set_ylabel("%")
    figure.legend(loc="outside right upper", fontsize="x-small")


def _losses(figure: Any, rows: Sequence[Row]) -> None:
    names = short_names(row["model"] for row in rows)
    axes = figure.subplots()
    keys = sorted({(row["model"], row["condition"] or "") for row in rows})
    for number, (model, condition) in enumerate(keys):
        for metric, style in (("student_ce", "-"), ("teacher_ce", "--")):
            own = [r for r in rows if (r["model"], r["condition"] or "", r["metric"]) == (model, condition, metric)]
            label = f"{names[model]} {condition} {metric.removesuffix('_ce')}"
            steps, values = [row["step"] for row in own], [row["value"] for row in own]
            if own:
                axes.plot(steps, values, style, label=label, color=COLOURS[number % len(COLOURS)])
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    figure.legend(loc="outside right upper", fontsize="x-small")
