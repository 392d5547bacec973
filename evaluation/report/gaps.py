"""Differences between trained conditions: their columns in tables, and what they come to in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from logitbank.evaluation.report.labels import Row, is_imported_sweep, ordered_models, ordered_tasks, setup_label
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import UNRESOLVED
from logitbank.experiment import GAPS

GAP_NOTE = (
    "Gaps in points, over the cells that both have, by a paired bootstrap over the same examples. "
    f"{UNRESOLVED}: the interval contains zero, so the difference is not resolved and no finding. "
    "±?: there are no predictions on the same examples, so nothing can be said."
)


def gap_columns(rows: Sequence[Row]) -> list[tuple[str, Mapping[str, Row]]]:
    """Names of the gap columns of one model's rows of `task_gaps`, each with its rows by task."""
    columns: list[tuple[str, Mapping[str, Row]]] = []
    for minuend, subtrahend in GAPS:
        own = [row for row in rows if (row["minuend"], row["subtrahend"]) == (minuend, subtrahend)]
        keys = sorted({(row["setup"], row["variant"]) for row in own})
        for setup, variant in keys:
            by_task = {row["task"]: row for row in own if (row["setup"], row["variant"]) == (setup, variant)}
            parts = [variant] if len({other for _, other in keys}) > 1 else []
            parts += [setup_label(setup)] if len({other for other, _ in keys}) > 1 else []
            columns.append((f"{minuend}−{subtrahend}" + (f" ({', '.join(parts)})" if parts else ""), by_task))
    return columns


def gap_sentences(results: Results) -> list[str]:
    """For each model and gap: in which tasks it is resolved, and which way."""
    found = []
    for model in ordered_models(results.main_averages):
        for minuend, subtrahend in GAPS:
            own = [
                row
                for row in results.task_gaps
                if (row["model"], row["minuend"], row["subtrahend"]) == (model, minuend, subtrahend)
                and not is_imported_sweep({**row, "condition": minuend}, results.averages)
            ]
            details: dict[str, list[str]] = {}  # by what is said of them
            for name, by_task in gap_columns(own):
                variant = name.partition(" (")[2].removesuffix(")")
                details.setdefault(_verdicts(results, list(by_task.values())), []).append(variant)
            for said, variants in details.items():
                detail = f" ({'; '.join(variants)})" if any(variants) else ""
                found.append(f"{results.labels.models[model]}, {minuend} against {subtrahend}{detail}: {said}.")
    return found


def _verdicts(results: Results, rows: Sequence[Row]) -> str:
    by_verdict: dict[str, list[str]] = {
        verdict: [] for verdict in ("higher", "lower", "not resolved", "without predictions to judge by")
    }
    for row in sorted(rows, key=lambda row: ordered_tasks(other["task"] for other in rows).index(row["task"])):
        interval = results.gap_interval(row)
        if interval is None:
            verdict = "without predictions to judge by"
        elif not interval.excludes_zero:
            verdict = "not resolved"
        else:
            verdict = "higher" if row["difference"] > 0 else "lower"
        by_verdict[verdict].append(row["task"])
    return "; ".join(f"{verdict} in {', '.join(tasks)}" for verdict, tasks in by_verdict.items() if tasks)
