"""What the pictures of a report show, as data; `png` draws it with matplotlib, `interactive` with Plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from logitbank.evaluation.report.checkpoints import has_curve
from logitbank.evaluation.report.gaps import gap_columns, main_gaps
from logitbank.evaluation.report.intervals import Interval
from logitbank.evaluation.report.labels import (
    Labels,
    Row,
    in_brackets,
    is_imported_sweep,
    key_of,
    ordered_columns,
    ordered_languages,
    ordered_models,
    ordered_tasks,
    short_names,
)
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.statistics import CLASSIFIED
from logitbank.evaluation.report.units import unit_of

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")


@dataclass(frozen=True)
class Series:
    """One set of numbers in one colour.

    Attributes:
        name: in the legend.
        x: places, categories of the chart or numbers.
        y: values.
        bounds: lowest and highest of each value's interval, if there is one; empty without any.
        colour: which of `COLOURS`; series of the same thing share one.
        dashed: for lines.
        said: of each value, beside it where a pointer is over it; empty without.
    """

    name: str
    x: Sequence[str | float]
    y: Sequence[float]
    bounds: Sequence[tuple[float, float] | None] = ()
    colour: int = 0
    dashed: bool = False
    said: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """A heat map: `values` are rows of cells, None if there is none."""

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Chart:
    """A picture.

    Attributes:
        name: of its file, without suffix.
        caption: what it shows; alone, if there is nothing to draw.
        kind: `bars` and `points` have categories on the x axis, `lines` numbers; `heat` has panels.
        categories: in order, of bars and points.
        series: what is drawn.
        panels: of a heat map.
        x_title: of the x axis.
        y_title: of the y axis.
    """

    name: str
    caption: str
    kind: Literal["bars", "points", "lines", "heat"]
    categories: Sequence[str] = ()
    series: Sequence[Series] = ()
    panels: Sequence[Panel] = field(default_factory=tuple)
    x_title: str = ""
    y_title: str = "%"

    @property
    def drawn(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.series or self.panels)


def all_charts(results: Results) -> list[Chart]:
    """Every chart that has something to show or to say."""
    charts = []
    for number, model in enumerate(ordered_models(results.main_averages)):
        charts += [_bars(results, model, number), _heat(results, model, number), *_gaps(results, model, number)]
    return [*charts, *_models(results), *_checkpoints(results), *_sweep(results), *_losses(results)]


def _bars(results: Results, model: str, number: int) -> Chart:
    own = _primary(results, results.task_averages, model)
    tasks, columns = ordered_tasks(row["task"] for row in own), ordered_columns(own, results.labels)
    series = []
    for colour, column in enumerate(columns):
        rows = {row["task"]: row for row in own if results.labels.column(row) == column}
        bounds = [bounds_of(results.task_interval(row)) for row in rows.values()]
        heights = [100 * row["language_mean"] for row in rows.values()]
        series.append(Series(column, list(rows), heights, bounds, colour))
    caption = f"{results.labels.models[model]}: mean over languages, by task"
    return Chart(f"bars-{number}", caption, "bars", tasks, series)


def _heat(results: Results, model: str, number: int) -> Chart:
    own = _primary(results, results.cells, model)
    tasks = ordered_tasks(row["task"] for row in own)
    languages = ordered_languages(row["language"] for row in own)
    panels = []
    for column in ordered_columns(own, results.labels):
        cells = {(r["task"], r["language"]): 100 * r["value"] for r in own if results.labels.column(r) == column}
        panels.append(Panel(column, languages, tasks, [[cells.get((t, lang)) for lang in languages] for t in tasks]))
    return Chart(f"heatmap-{number}", f"{results.labels.models[model]}: every cell, in %", "heat", panels=panels)


def _gaps(results: Results, model: str, number: int) -> list[Chart]:
    own = main_gaps(results, model)
    if not own:
        return []
    label = results.labels.models[model]
    series, equal = [], []
    for colour, (gap, detail, by_task) in enumerate(gap_columns(own)):
        name = in_brackets(gap, detail)
        heights = [100 * row["difference"] for row in by_task.values()]
        if not any(heights):
            equal.append(name.replace("−", " and "))
            continue
        bounds = [bounds_of(results.gap_interval(row)) for row in by_task.values()]
        series.append(Series(name, list(by_task), heights, bounds, colour))
    caption = f"{label}: gaps in points, with paired 95% intervals where there are predictions." if series else ""
    same = f"{label}: {', '.join(equal)} have the same score in every task." if equal else ""
    tasks = ordered_tasks(row["task"] for row in own)
    caption = " ".join(part for part in (caption, same) if part)
    return [Chart(f"gaps-{number}", caption, "points", tasks, series, y_title="points")]


def _models(results: Results) -> list[Chart]:
    shown, labels = results.main_averages, results.labels
    models = ordered_models(shown)
    if len(models) < 2:
        return []
    series = []
    for colour, column in enumerate(ordered_columns(shown, labels)):
        rows = [row for row in shown if labels.column(row) == column]
        places = [labels.models[row["model"]] for row in rows]
        bounds = [bounds_of(results.mean_interval(row, "task_language_mean")) for row in rows]
        series.append(Series(column, places, [100 * row["task_language_mean"] for row in rows], bounds, colour))
    categories = [labels.models[model] for model in models]
    return [Chart("models", "All models: task_language_mean, in %", "bars", categories, series)]


def _checkpoints(results: Results) -> list[Chart]:
    curves = results.catalogue.rows("SELECT * FROM checkpoint_curves ORDER BY step")
    charts = []
    for task in ordered_tasks(row["task"] for row in curves):
        own = [row for row in curves if row["task"] == task]
        if not has_curve(own):
            continue
        series, unit = [], unit_of(own[0]["metric"])
        for colour, key in enumerate(sorted({key_of(row) for row in own})):
            rows = [row for row in own if key_of(row) == key]
            values = [unit.scale * row["language_mean"] for row in rows]
            series.append(Series(results.labels.series(rows[0]), [row["step"] for row in rows], values, colour=colour))
        caption = f"{task}: {own[0]['metric']} along training"
        charts.append(Chart(f"checkpoints-{task}", caption, "lines", (), series, x_title="step", y_title=unit.name))
    return charts


def _sweep(results: Results) -> list[Chart]:
    rows = results.catalogue.rows("SELECT * FROM lambda_sweep ORDER BY lambda_distill")
    if len({row["lambda_distill"] for row in rows}) < 2:
        return []
    names = short_names(row["model"] for row in rows)
    same = ("model", "condition", "task", "setup", "taught_by")
    series = []
    keys = sorted({tuple(row[name] for name in same) for row in rows})
    for colour, key in enumerate(keys):
        own = [row for row in rows if tuple(row[name] for name in same) == key]
        alike = [other[3:] for other in keys if other[:3] == key[:3]]
        taught_by = key[4] if len({other for _, other in alike}) > 1 else ""
        label = in_brackets(f"{names[key[0]]} {key[1]} {key[2]}", taught_by)
        values = [100 * row["language_mean"] for row in own]
        series.append(Series(label, [row["lambda_distill"] for row in own], values, colour=colour))
    return [Chart("lambda-sweep", "Mean over languages against λ", "lines", (), series, x_title="λ")]


def _losses(results: Results) -> list[Chart]:
    """A line for each way of training; runs that differ in more than their seed are not averaged."""
    rows = results.catalogue.rows(
        """
        SELECT l.model, coalesce(l.condition, '') AS condition, '' AS setup, NULL AS max_steps,
               concat_ws(' ', nullif(r.strategy, 'fixed'), 'λ=' || r.lambda_distill) AS variant,
               concat_ws(' ', r.teacher, l.view) AS taught_by, l.step, l.metric, avg(l.value) AS value
        FROM training_log AS l LEFT JOIN runs AS r USING (run)
        WHERE l.task = 'all' AND l.metric IN ('student_ce', 'teacher_ce') GROUP BY ALL ORDER BY l.step
        """
    )
    labels = Labels.of(rows)
    series = []
    for colour, key in enumerate(sorted({key_of(row) for row in rows})):
        for metric in ("student_ce", "teacher_ce"):
            own = [row for row in rows if key_of(row) == key and row["metric"] == metric]
            if own:
                label = f"{labels.series(own[0])} {metric.removesuffix('_ce')}"
                steps, values = [row["step"] for row in own], [row["value"] for row in own]
                series.append(Series(label, steps, values, colour=colour, dashed=metric == "teacher_ce"))
    caption = "Cross-entropy of student (line) and teacher (dashed), nats per answer token"
    return [Chart("cross-entropy", caption, "lines", (), series, x_title="step", y_title="nats")] if series else []


def _primary(results: Results, rows: Sequence[Row], model: str) -> list[Row]:
    return [
        row
        for row in rows
        if row["model"] == model
        and row["is_primary"]
        and row["method"] != CLASSIFIED
        and not is_imported_sweep(row, results.averages)
    ]


def bounds_of(found: Interval | None) -> tuple[float, float] | None:
    """Of an interval, in points."""
    return None if found is None else (100 * found.low, 100 * found.high)


def arms(series: Series) -> Mapping[str, Sequence[float]]:
    """How far each value's interval reaches `below` and `above` it, zero if there is none."""
    bounds = series.bounds or [None] * len(series.y)
    pairs = list(zip(series.y, bounds, strict=True))
    return {
        "below": [0.0 if bound is None else max(0.0, y - bound[0]) for y, bound in pairs],
        "above": [0.0 if bound is None else max(0.0, bound[1] - y) for y, bound in pairs],
    }
