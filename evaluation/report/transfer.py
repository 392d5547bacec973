"""English against the mean of the other languages."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.labels import Row, key_of, ordered_conditions, ordered_tasks
from logitbank.evaluation.report.results import Results, cell_key
from logitbank.evaluation.report.table import MISSING, UNRESOLVED, Table, difference_with_interval, percent


def transfer_tables(results: Results) -> list[Table]:
    """One table over the tasks that have both; none if no task has."""
    rows = [row for row in results.catalogue.rows("SELECT * FROM transfer_gaps") if row["transfer_gap"] is not None]
    if not rows:
        return []
    tasks = ordered_tasks(row["task"] for row in rows)
    shown = []
    order = ordered_conditions(row["condition"] for row in rows)
    for key in sorted({key_of(row) for row in rows}, key=lambda key: (key[0], order.index(key[1]), key[2:])):
        own = {row["task"]: row for row in rows if key_of(row) == key}
        any_row = next(iter(own.values()))
        cells = [cell for cell in results.cells_of(any_row) if cell["task"] in own]
        english = _mean([cell["value"] for cell in cells if cell["language"] == "en"])
        others = _mean([cell["value"] for cell in cells if cell["language"] != "en"])
        gaps = [
            _gap(results, own[task]["transfer_gap"], [cell for cell in cells if cell["task"] == task])
            if task in own
            else MISSING
            for task in tasks
        ]
        text = [percent(english), percent(others), _gap(results, english - others, cells)]
        shown.append([results.labels.series(any_row), *text, *gaps])
    header = ["model and condition", "English", "other languages", "gap", *(f"{task} gap" for task in tasks)]
    note = (
        "English → X transfer gap in points: English minus the mean over all cells of other languages, same tasks. "
        f"{UNRESOLVED}: the interval contains zero."
    )
    return [Table("Transfer gap", header, shown, [note], groups=[4])]


def _gap(results: Results, gap: float, cells: Sequence[Row]) -> str:
    english = [cell_key(cell) for cell in cells if cell["language"] == "en"]
    others = [cell_key(cell) for cell in cells if cell["language"] != "en"]
    metric = {cell["task"]: cell["metric"] for cell in cells}
    found = results.replicates.contrast(english, others, metric)
    return difference_with_interval(percent(gap, signed=True), gap, found)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
