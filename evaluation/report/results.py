"""The rows that all tables and charts show, read once, with the intervals of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logitbank.evaluation.report.intervals import CellKey, Interval, Replicates, replicate_name
from logitbank.evaluation.report.labels import Labels, Row, is_imported_sweep, key_of, ordered_tasks
from logitbank.evaluation.report.recalled import recall_replicates
from logitbank.evaluation.report.statistics import CLASSIFIED, FORCED
from logitbank.evaluation.report.table import average, difference_with_interval, with_interval
from logitbank.evaluation.report.units import unit_of
from logitbank.storage.results import Catalogue
from logitbank.tasks.scoring.classes import CLASS_METRICS

# Shown in tables of their own; every other metric is in `metrics`.
OF_LIKELIHOODS = ("cross_entropy", "perplexity", "kl", "agreement")
EXTRA_METRICS = ("exact_match", "likelihood_accuracy", *OF_LIKELIHOODS, *CLASS_METRICS)
# Views that many tables read, each made of those before it.
KEPT = ("evaluations", "scores", "final_scores", "cells", "grid", "task_averages", "gaps", "task_gaps")
# What tells one gap of a model from another.
GAP_KEY = ("setup", "gap", "variant", "subtrahend_variant", "taught_by", "subtrahend_taught_by", "step")


@dataclass(frozen=True)
class Results:
    """Rows of the views of `storage.results.views`.

    Attributes:
        catalogue: where the rows come from, for what only one table needs.
        averages: of `averages`, in which log losses are not; where tasks are scored by answers, without those that are
            scored by likelihood.
        task_averages: of `task_averages`, primary and extra metrics.
        cells: of `cells`, primary and extra metrics.
        task_gaps: of `task_gaps`, primary and extra metrics.
        gaps: of `gaps`, primary and extra metrics.
        labels: short names for them.
        replicates: of every cell that has predictions.
    """

    catalogue: Catalogue
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
        catalogue.keep(*KEPT)
        wanted = ", ".join(f"'{metric}'" for metric in EXTRA_METRICS)
        shown = f"WHERE is_primary OR metric IN ({wanted})"
        averages = catalogue.rows(f"SELECT * FROM averages WHERE method <> '{CLASSIFIED}'")
        if answered := [row for row in averages if row["method"] != FORCED]:
            averages = answered
        task_averages = catalogue.rows(f"SELECT * FROM task_averages {shown}")
        return cls(
            catalogue=catalogue,
            averages=averages,
            task_averages=task_averages,
            cells=catalogue.rows(f"SELECT * FROM cells {shown}"),
            task_gaps=catalogue.rows(f"SELECT * FROM task_gaps {shown}"),
            gaps=catalogue.rows(f"SELECT * FROM gaps {shown}"),
            labels=Labels.of([*averages, *task_averages]),
            replicates=recall_replicates(catalogue, EXTRA_METRICS),
        )

    @cached_property
    def main_averages(self) -> list[Row]:
        """Rows of `averages` but imported λ sweeps, which only the λ tables show."""
        return [row for row in self.averages if not is_imported_sweep(row, self.averages)]

    def cells_of(self, row: Row, **fixed: Any) -> list[Row]:
        """Cells of the same key as a row, primary ones unless `metric` says."""
        wanted = fixed if "metric" in fixed else {**fixed, "is_primary": True}
        wanted |= {name: row[name] for name in ("method", "against") if name in row}
        return [
            cell
            for cell in self._cells_by_key.get(key_of(row), ())
            if all(cell[name] == value for name, value in wanted.items())
        ]

    def primary_tasks(self, row: Row) -> list[Row]:
        """Rows of `task_averages` of the same key as a row, primary metrics; log losses have tables of their own."""
        own = self._tasks_by_key.get(key_of(row), ())
        return [each for each in own if each["is_primary"] and each["method"] != CLASSIFIED]

    def left_out(self, rows: Sequence[Row]) -> list[str]:
        """Which tasks of rows of `task_averages` are in no mean over tasks, in a note."""
        if all(row["method"] == FORCED for row in self.averages):
            return []
        notes = []
        for method, how in ((FORCED, "likelihood"), (CLASSIFIED, "class probabilities")):
            if tasks := ordered_tasks(row["task"] for row in rows if row["method"] == method):
                notes.append(
                    f"Means over tasks are of scores of answers; {', '.join(tasks)}, scored by {how}, is in none."
                )
        return notes

    def mean_text(self, row: Row, name: str) -> str:
        """A row's `task_mean` or `task_language_mean` with its interval."""
        return with_interval(
            average(row[name], row["cells"], row["expected_cells"]), row[name], self.mean_interval(row, name)
        )

    def mean_interval(self, row: Row, name: str) -> Interval | None:
        """Interval of a row's `task_mean` or `task_language_mean`."""
        own = self.cells_of(row)  # of the row's method
        metric = {cell["task"]: cell["metric"] for cell in own}
        keys = [cell_key(cell) for cell in own]
        return self.replicates.task_mean(keys, metric) if name == "task_mean" else self.replicates.average(keys, metric)

    def task_average(self, row: Row) -> str:
        """`language_mean` of a row of `task_averages` with its interval."""
        unit = unit_of(row["metric"])
        shown = average(row["language_mean"], row["languages"], row["expected_languages"], unit=unit)
        return with_interval(shown, row["language_mean"], self.task_interval(row), unit)

    def task_interval(self, row: Row) -> Interval | None:
        """Interval of `language_mean` of a row of `task_averages`."""
        own = self.cells_of(row, task=row["task"], metric=row["metric"])
        return self.replicates.average([cell_key(cell) for cell in own], replicate_name(row))

    def cell_text(self, cell: Row) -> str:
        """A row of `cells` with its interval."""
        found, unit = self.replicates.cell(cell_key(cell), replicate_name(cell)), unit_of(cell["metric"])
        return with_interval(unit.text(cell["value"]), cell["value"], found, unit)

    def gap(self, row: Row) -> str:
        """A row of `task_gaps` with its paired interval and, if it is not resolved, the mark."""
        unit = unit_of(row["metric"])
        shown = average(row["difference"], row["languages"], row["expected_languages"], signed=True, unit=unit)
        return difference_with_interval(shown, row["difference"], self.gap_interval(row), unit)

    def gap_interval(self, row: Row) -> Interval | None:
        """Paired bootstrap interval of a row of `task_gaps`, or of one that has some of its columns."""
        same = [name for name in ("model", "task", "metric", "against", *GAP_KEY) if name in row]
        own = self._gaps_by_task.get((row["model"], row["task"]), ())
        pairs = [gap_cells(gap) for gap in own if all(gap[name] == row[name] for name in same)]
        return self.replicates.difference(pairs, replicate_name(row))

    @cached_property
    def _cells_by_key(self) -> dict[tuple[str, ...], list[Row]]:
        return _grouped(self.cells, key_of)

    @cached_property
    def _tasks_by_key(self) -> dict[tuple[str, ...], list[Row]]:
        return _grouped(self.task_averages, key_of)

    @cached_property
    def _gaps_by_task(self) -> dict[tuple[str, ...], list[Row]]:
        return _grouped(self.gaps, lambda gap: (gap["model"], gap["task"]))


def _grouped(rows: Sequence[Row], key: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def cell_key(cell: Row) -> CellKey:
    """Key of a row of `cells` in `Replicates`."""
    return (*key_of(cell), cell["task"], cell["language"])


def gap_cells(gap: Row) -> tuple[CellKey, CellKey]:
    """Keys of the two cells that a row of `gaps` compares."""
    minuend = {**gap, "condition": gap["minuend"]}
    taught = {name: gap[f"subtrahend_{name}"] for name in ("variant", "taught_by")}
    subtrahend = {**gap, "condition": gap["subtrahend"], **taught}
    return cell_key(minuend), cell_key(subtrahend)
