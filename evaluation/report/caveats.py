"""What a number hides unless its table says it: another step, fewer demonstrations, answers cut short, fewer seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from logitbank.evaluation.report.labels import Row, ordered_tasks
from logitbank.evaluation.report.results import Results

ENOUGH = 0.995  # of the demonstrations wanted
LITTLE = 0.0005  # a share of answers that rounds to 0.0%


def caveats(results: Results, averages: Sequence[Row]) -> list[str]:
    """Notes for a table with the given rows of `averages`, of one model, as its columns."""
    label = results.labels.column
    return [
        *step_notes(averages, label),
        *_seeds(averages, label),
        *_by_task(results, averages, "Mean demonstrations kept in a prompt", fewer_demonstrations),
        *_by_task(results, averages, "Answers cut short at the limit of new tokens", cut_short),
    ]


def step_notes(averages: Sequence[Row], label: Callable[[Row], str]) -> list[str]:
    """Which rows are of a checkpoint from before the end of its training run."""
    early = [
        f"{label(row)} at step {row['step']:,} of {row['max_steps']:,}"
        for row in averages
        if row["step"] is not None and row["max_steps"] is not None and row["step"] < row["max_steps"]
    ]
    return [f"Evaluated before the end of training: {', '.join(early)}."] if early else []


def fewer_demonstrations(row: Row) -> str:
    """`1.2 of 3` where prompts kept fewer demonstrations than wanted; else empty."""
    kept, wanted = row["demonstrations"], row["demonstrations_wanted"]
    return "" if kept is None or not wanted or kept >= ENOUGH * wanted else f"{kept:.1f} of {wanted:.3g}"


def cut_short(row: Row) -> str:
    """`2.9%` of answers ended at the limit of new tokens; empty if none did."""
    share = row["cut_short"]
    return "" if share is None or share < LITTLE else f"{100 * share:.1f}%"


def _seeds(averages: Sequence[Row], label: Callable[[Row], str]) -> list[str]:
    if all(row["seeds"] == 1 for row in averages):
        return []
    texts = [
        f"{label(row)} {row['seeds']}" + (f" ({row['fewest_seeds']} in some cells)" if _uneven(row) else "")
        for row in averages
        if row["seeds"] > 1
    ]
    others = ", all others 1" if len(texts) < len(averages) else ""
    return [f"Seeds: {', '.join(texts)}{others}."]


def _uneven(row: Row) -> bool:
    return bool(row["fewest_seeds"] < row["seeds"])


def _by_task(results: Results, averages: Sequence[Row], about: str, say: Callable[[Row], str]) -> list[str]:
    """One caveat, as a sentence about some tasks in some columns."""
    said = []
    for row in averages:
        tasks = {own["task"]: own for own in results.primary_tasks(row)}
        texts = [f"{task} {say(tasks[task])}" for task in ordered_tasks(tasks) if say(tasks[task])]
        if texts:
            said.append(f"{results.labels.column(row)} {', '.join(texts)}")
    return [f"{about}: {'; '.join(said)}."] if said else []
