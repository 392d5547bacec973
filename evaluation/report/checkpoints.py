"""Scores along training."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.labels import Row, key_of, ordered_tasks
from logitbank.evaluation.report.results import Results, cell_key
from logitbank.evaluation.report.table import MISSING, Table, average, with_interval
from logitbank.evaluation.report.units import unit_of


def checkpoint_tables(results: Results) -> list[Table]:
    """For each task on which a student was evaluated at several steps: steps as columns, `language_mean` as values."""
    rows = results.catalogue.rows("SELECT * FROM checkpoint_curves ORDER BY step")
    tables = []
    for task in ordered_tasks(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        if not has_curve(own):
            continue
        steps = sorted({row["step"] for row in own})
        shown = []
        for key in sorted({key_of(row) for row in own}):
            by_step = {row["step"]: row for row in own if key_of(row) == key}
            texts = [_at_step(results, by_step[step]) if step in by_step else MISSING for step in steps]
            shown.append([results.labels.series(next(iter(by_step.values()))), *texts])
        header = ["model and condition", *(f"step {step}" for step in steps)]
        note = f"`language_mean` of each checkpoint, in {unit_of(own[0]['metric']).name}."
        tables.append(Table(f"Checkpoints: {task} ({own[0]['metric']})", header, shown, [note]))
    return tables


def has_curve(rows: Sequence[Row]) -> bool:
    """Whether rows of `checkpoint_curves` have several steps of one series."""
    return len(rows) > len({key_of(row) for row in rows})


def _at_step(results: Results, row: Row) -> str:
    cells = [cell_key(cell) for cell in results.cells_of(row, task=row["task"])]
    unit = unit_of(row["metric"])
    shown = average(row["language_mean"], row["languages"], row["expected_languages"], unit=unit)
    return with_interval(shown, row["language_mean"], results.replicates.at_step(cells, row["step"]), unit)
