"""Differences between trained conditions: their columns in tables, and what they come to in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from logitbank.errors import counted
from logitbank.evaluation.report.labels import (
    Row,
    in_brackets,
    is_imported_sweep,
    ordered_models,
    ordered_tasks,
    tell_apart,
)
from logitbank.evaluation.report.results import GAP_KEY, Results
from logitbank.evaluation.report.statistics import CLASSIFIED
from logitbank.evaluation.report.table import UNRESOLVED
from logitbank.experiment import GAPS

Place = TypeVar("Place", bound=Hashable)
GAP_NOTE = (
    "Gaps in points, over the cells that both have, by a paired bootstrap over the same examples. "
    f"{UNRESOLVED}: the interval contains zero, so the difference is not resolved and no finding. "
    "±?: there are no predictions on the same examples, so nothing can be said."
)


def main_gaps(results: Results, model: str) -> list[Row]:
    """A model's rows of `task_gaps`, primary metrics, but those of imported λ sweeps."""
    return [
        row
        for row in results.task_gaps
        if row["model"] == model
        and row["is_primary"]
        and row["method"] != CLASSIFIED  # in a table of its own
        and not is_imported_sweep({**row, "condition": row["minuend"]}, results.averages)
    ]


def gap_columns(rows: Sequence[Row]) -> list[tuple[str, str, Mapping[str, Row]]]:
    """Name and detail of the gap columns of one model's rows of `task_gaps`, each with its rows by task."""
    return gap_columns_by(lambda row: str(row["task"]), rows)


def gap_columns_by(place: Callable[[Row], Place], rows: Sequence[Row]) -> list[tuple[str, str, Mapping[Place, Row]]]:
    """The same, each column with its rows by what `place` gives for them."""
    columns: list[tuple[str, str, Mapping[Place, Row]]] = []
    for minuend, subtrahend in GAPS:
        by_key: dict[tuple[str, ...], dict[Place, Row]] = {}
        for row in rows:
            if (row["minuend"], row["subtrahend"]) == (minuend, subtrahend):
                by_key.setdefault(tuple(str(row[name]) for name in GAP_KEY), {})[place(row)] = row
        series = [by_key[key] for key in sorted(by_key)]
        details = tell_apart([next(iter(by_task.values())) for by_task in series])
        columns += [(f"{minuend}−{subtrahend}", detail, own) for detail, own in zip(details, series, strict=True)]
    return columns


def gap_sentences(results: Results) -> list[str]:
    """For each model and gap: in which tasks it is resolved, and which way."""
    found = []
    for model in ordered_models(results.main_averages):
        details: dict[tuple[str, str], list[str]] = {}  # of each gap, by what is said of it
        for name, detail, by_task in gap_columns(main_gaps(results, model)):
            details.setdefault((name, _verdicts(results, list(by_task.values()))), []).append(detail)
        for (name, said), own in details.items():
            detail = counted(len(own), "variant") if len(own) > 2 else "; ".join(detail for detail in own if detail)
            about = in_brackets(name.replace("−", " against "), detail)
            found.append(f"{results.labels.models[model]}, {about}: {said}.")
    return found


def _verdicts(results: Results, rows: Sequence[Row]) -> str:
    by_verdict: dict[str, list[str]] = {
        verdict: [] for verdict in ("higher", "lower", "not resolved", "without predictions to judge by")
    }
    order = ordered_tasks(row["task"] for row in rows)
    for row in sorted(rows, key=lambda row: order.index(row["task"])):
        interval = results.gap_interval(row)
        if interval is None:
            verdict = "without predictions to judge by"
        elif not interval.excludes_zero:
            verdict = "not resolved"
        else:
            verdict = "higher" if row["difference"] > 0 else "lower"
        by_verdict[verdict].append(row["task"])
    return "; ".join(f"{verdict} in {', '.join(tasks)}" for verdict, tasks in by_verdict.items() if tasks)
