"""The standing tables, from the views of `storage.tables`: what goes into which row and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.evaluation.report.intervals import Cell, Interval, Replicates, load_replicates
from logitbank.evaluation.report.labels import (
    Labels,
    Row,
    key_of,
    ordered_columns,
    ordered_conditions,
    ordered_languages,
    ordered_models,
    ordered_tasks,
    setup_label,
)
from logitbank.evaluation.report.render import MISSING, Table, average, percent
from logitbank.storage.results.catalogue import Catalogue

GAPS = ("distilled-finetuned", "control-finetuned", "distilled-control")
EXTRA_METRICS = (
    "exact_match",
    "likelihood_accuracy",
)  # shown in a table of their own; every other metric is in `metrics`
UNRESOLVED = "≈0"
INTERVAL_NOTE = (
    "±: half of the 95% bootstrap interval over the evaluated examples, the trained weights being given; training "
    "again with another seed adds to it. None for published numbers, whose predictions are not here."
)
GAP_NOTE = (
    "Gaps in points, over the cells that both have, by a paired bootstrap over the same examples. "
    f"{UNRESOLVED}: the interval contains zero, so the difference is not resolved and no finding. "
    "±?: predictions on the same examples are not here, so nothing can be said."
)


@dataclass(frozen=True)
class Results:
    """The rows that the tables show, read once."""

    averages: Sequence[Row]
    task_averages: Sequence[Row]
    cells: Sequence[Row]
    task_gaps: Sequence[Row]
    gaps: Sequence[Row]
    labels: Labels
    replicates: Replicates

    @classmethod
    def load(cls, catalogue: Catalogue) -> Results:
        """Read the views and bootstrap every cell that has predictions."""
        wanted = ", ".join(f"'{metric}'" for metric in EXTRA_METRICS)
        shown = f"WHERE is_primary OR metric IN ({wanted})"
        averages = catalogue.rows("SELECT * FROM averages")
        task_averages = catalogue.rows(f"SELECT * FROM task_averages {shown}")
        return cls(
            averages=averages,
            task_averages=task_averages,
            cells=catalogue.rows(f"SELECT * FROM cells {shown}"),
            task_gaps=catalogue.rows("SELECT * FROM task_gaps WHERE is_primary"),
            gaps=catalogue.rows("SELECT * FROM gaps WHERE is_primary"),
            labels=Labels.of([*averages, *task_averages]),
            replicates=load_replicates(catalogue, EXTRA_METRICS),
        )

    def cells_of(self, row: Row, **fixed: Any) -> list[Row]:
        """Cells of the model, condition, setup and variant of a row, primary ones unless `metric` says."""
        wanted = fixed if "metric" in fixed else {**fixed, "is_primary": True}
        return [
            cell
            for cell in self.cells
            if key_of(cell) == key_of(row) and all(cell[name] == value for name, value in wanted.items())
        ]

    def task_average(self, row: Row) -> str:
        """Mean over languages of one task with its interval."""
        own = self.cells_of(row, task=row["task"], metric=row["metric"])
        found = self.replicates.average([cell_key(cell) for cell in own], row["metric"])
        shown = average(row["language_mean"], row["languages"], row["expected_languages"])
        return with_interval(shown, found)

    def gap(self, row: Row) -> str:
        """A row of `task_gaps` with its paired interval and, where it is not resolved, the mark."""
        found = self.gap_interval(row)
        shown = average(row["difference"], row["languages"], row["expected_languages"], signed=True)
        return with_interval(shown, found, difference=True)

    def gap_interval(self, row: Row) -> Interval | None:
        """Paired bootstrap interval of a row of `task_gaps`."""
        pairs = [
            gap_cells(gap)
            for gap in self.gaps
            if all(gap[name] == row[name] for name in ("model", "setup", "gap", "variant", "task", "metric"))
        ]
        return self.replicates.difference(pairs, row["metric"])


def all_tables(catalogue: Catalogue) -> list[Table]:
    """Every standing table, in reading order; none without a metric row."""
    results = Results.load(catalogue)
    return tables_of(catalogue, results) if results.task_averages else []


def tables_of(catalogue: Catalogue, results: Results) -> list[Table]:
    """The same, for results that are loaded already."""
    from logitbank.evaluation.report.more_tables import more_tables

    return [
        *summary_tables(results),
        *overview_tables(results),
        *more_tables(catalogue, results),
        *condition_tables(results),
    ]


def summary_tables(results: Results) -> list[Table]:
    """One table for each kind of average: models as rows, conditions as columns."""
    labels = results.labels
    columns = ordered_columns(results.averages, labels)
    tables = []
    for name, meaning in (
        ("task_language_mean", "mean over all (task, language) cells, each counting once"),
        ("task_mean", "mean over tasks of their mean over languages, each task counting once"),
    ):
        rows = []
        for model in ordered_models(results.averages):
            by_column = {labels.column(row): row for row in results.averages if row["model"] == model}
            texts = [_mean_text(results, by_column[c], name) if c in by_column else MISSING for c in columns]
            rows.append([labels.models[model], *texts])
        note = f"`{name}`, in %: {meaning}. (n/m): only n of the m cells that any model has."
        tables.append(Table(f"Summary per condition: {name}", ["model", *columns], rows, [note, INTERVAL_NOTE]))
    return tables


def overview_tables(results: Results) -> list[Table]:
    """For each model: tasks as rows, conditions and the three gaps as columns."""
    labels = results.labels
    primary = [row for row in results.task_averages if row["is_primary"]]
    tables = []
    for model in ordered_models(primary):
        own = [row for row in primary if row["model"] == model]
        columns = ordered_columns(own, labels)
        gaps = _gap_columns([row for row in results.task_gaps if row["model"] == model])
        rows = []
        for task in ordered_tasks(row["task"] for row in own):
            cells = {labels.column(row): row for row in own if row["task"] == task}
            texts = [results.task_average(cells[c]) if c in cells else MISSING for c in columns]
            texts += [results.gap(by_task[task]) if task in by_task else MISSING for _, by_task in gaps]
            metric = next(row["metric"] for row in own if row["task"] == task)
            rows.append([f"{task} ({metric})", *texts])
        means = {labels.column(row): row for row in results.averages if row["model"] == model}
        rows.append(
            ["task_mean", *(_mean_text(results, means[c], "task_mean") for c in columns), *(MISSING for _ in gaps)]
        )
        header = ["task", *columns, *(name for name, _ in gaps)]
        notes = ["Rows: `language_mean`, the mean over languages, in %.", *([GAP_NOTE] if gaps else [])]
        if any(row["seeds"] > 1 for row in means.values()):
            notes.append("Seeds: " + ", ".join(f"{column} {means[column]['seeds']}" for column in columns) + ".")
        tables.append(Table(f"Overview: {labels.models[model]}", header, rows, notes))
    return tables


def condition_tables(results: Results) -> list[Table]:
    """For each condition and task: models as rows, languages as columns, and their `language_mean`."""
    tables = []
    for condition in ordered_conditions(row["condition"] for row in results.task_averages):
        tables.append(Table(f"Condition: {condition}", [], []))
        own = [row for row in results.task_averages if row["condition"] == condition]
        for task in ordered_tasks(row["task"] for row in own):
            languages = ordered_languages(row["language"] for row in results.cells if row["task"] == task)
            metrics = {row["metric"]: row["is_primary"] for row in own if row["task"] == task}
            for metric in sorted(metrics, key=lambda name: (not metrics[name], name)):
                means = [row for row in own if row["task"] == task and row["metric"] == metric]
                rows = [_language_row(results, mean, languages) for mean in sorted(means, key=key_of)]
                header = ["model", *languages, "language_mean", "seeds"]
                tables.append(Table(f"{condition}: {task} ({metric}, %)", header, rows, level=3))
    return tables


def cell_key(cell: Row) -> Cell:
    """Key of a row of `cells` in `Replicates`."""
    return (cell["model"], cell["condition"], cell["setup"], cell["variant"], cell["task"], cell["language"])


def gap_cells(gap: Row) -> tuple[Cell, Cell]:
    """Keys of the two cells that a row of `gaps` compares."""
    where = (gap["task"], gap["language"])
    return (
        (gap["model"], gap["minuend"], gap["setup"], gap["variant"], *where),
        (gap["model"], gap["subtrahend"], gap["setup"], gap["subtrahend_variant"], *where),
    )


def with_interval(text: str, found: Interval | None, *, difference: bool = False) -> str:
    """`56.7 ±4.3`; a difference says besides whether it is resolved, or that nothing can be said.

    Without predictions to bootstrap: the text alone, a difference as `+1.2 ±?`.
    """
    if text == MISSING:
        return text
    if found is None:
        return f"{text} ±?" if difference else text
    mark = f" {UNRESOLVED}" if difference and not found.excludes_zero else ""
    return f"{text} ±{percent(found.half_width)}{mark}"


def _mean_text(results: Results, row: Row, name: str) -> str:
    own = results.cells_of(row)
    metric = {cell["task"]: cell["metric"] for cell in own}
    keys = [cell_key(cell) for cell in own]
    replicates = results.replicates
    found = replicates.task_mean(keys, metric) if name == "task_mean" else replicates.average(keys, metric)
    return with_interval(average(row[name], row["cells"], row["expected_cells"]), found)


def _language_row(results: Results, mean: Row, languages: Sequence[str]) -> list[str]:
    cells = {cell["language"]: cell for cell in results.cells_of(mean, task=mean["task"], metric=mean["metric"])}
    texts = []
    for language in languages:
        cell = cells.get(language)
        shown = percent(None if cell is None else cell["value"])
        found = None if cell is None else results.replicates.cell(cell_key(cell), mean["metric"])
        texts.append(with_interval(shown, found))
    return [results.labels.row(mean), *texts, results.task_average(mean), str(mean["seeds"])]


def _gap_columns(rows: Sequence[Row]) -> list[tuple[str, Mapping[str, Row]]]:
    """Names of the gap columns of one model, each with its rows by task."""
    columns: list[tuple[str, Mapping[str, Row]]] = []
    for gap in GAPS:
        keys = sorted({(row["setup"], row["variant"]) for row in rows if row["gap"] == gap})
        for setup, variant in keys:
            by_task = {
                row["task"]: row for row in rows if (row["gap"], row["setup"], row["variant"]) == (gap, setup, variant)
            }
            parts = [variant] if len({other for _, other in keys}) > 1 else []
            parts += [setup_label(setup)] if len({other for other, _ in keys}) > 1 else []
            columns.append((gap.replace("-", "−") + (f" ({', '.join(parts)})" if parts else ""), by_task))
    return columns
