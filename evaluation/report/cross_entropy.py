"""Student's and teacher's cross-entropy on the gold answers."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.labels import Row, ordered_conditions, short_names
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import MISSING, Table

COLUMNS = {"student_ce": "student CE", "teacher_ce": "teacher CE", "kd": "KD", "loss": "loss"}


def cross_entropy_table(results: Results) -> list[Table]:
    """The last logged values of every training run; none without one."""
    metrics = ", ".join(f"'{metric}'" for metric in COLUMNS)
    rows = results.catalogue.rows(f"SELECT * FROM training_ends WHERE task = 'all' AND metric IN ({metrics})")
    if not rows:
        return []
    names = short_names(row["model"] for row in rows)
    shown = []
    for run in sorted({row["run"] for row in rows}, key=lambda run: _run_order(rows, run)):
        own = {row["metric"]: row for row in rows if row["run"] == run}
        first = next(iter(own.values()))
        values = [f"{own[metric]['value']:.4f}" if metric in own else MISSING for metric in COLUMNS]
        label = f"{names[first['model']]} {first['condition'] or ''}".strip()
        seed = MISSING if first["seed"] is None else str(first["seed"])
        shown.append([label, seed, str(first["step"]), *values])
    header = ["training run", "seed", "step", *COLUMNS.values()]
    note = (
        "Nats per answer token, of preferences per comparison, on the training batches since the last log step; the "
        "teacher's from the store."
    )
    return [Table("Student and teacher cross-entropy", header, shown, [note])]


def _run_order(rows: Sequence[Row], run: str) -> tuple[str, int, str]:
    first = next(row for row in rows if row["run"] == run)
    order = ordered_conditions(row["condition"] or "" for row in rows)
    return first["model"], order.index(first["condition"] or ""), run
