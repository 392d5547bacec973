"""What is scored by likelihood: for each model and task its metrics as rows, conditions and gaps as columns."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.caveats import step_notes
from logitbank.evaluation.report.gaps import gap_columns_by
from logitbank.evaluation.report.labels import Row, in_brackets, ordered_columns, ordered_models, ordered_tasks
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.statistics import FORCED
from logitbank.evaluation.report.table import UNRESOLVED, Table
from logitbank.evaluation.report.units import MISSING, lower_is_better, unit_of

METRICS = ("token_accuracy", "cross_entropy", "perplexity", "kl", "agreement")
NOTE = (
    "Of the gold answers' tokens, each given the gold tokens before it. `token_accuracy`: the model's first choice is "
    "the gold token. Intervals and gaps by a (paired) bootstrap over conversations, gaps in the unit of their row. "
    f"{UNRESOLVED}: the interval contains zero."
)
TEACHER_NOTE = (
    "`kl`: KL(teacher ‖ model) over the K tokens that the store holds and all others as one, a lower bound of the "
    "divergence over all tokens. `agreement`: both have the same first choice."
)


def likelihood_tables(results: Results) -> list[Table]:
    """One table for each model and task that is scored by likelihood."""
    rows = _forced(results)
    return [
        _table(results, [row for row in own if row["task"] == task])
        for model in ordered_models(rows)
        for own in [[row for row in rows if row["model"] == model]]
        for task in ordered_tasks(row["task"] for row in own)
    ]


def likelihood_sentences(results: Results) -> list[str]:
    """For each gap that was compared with a teacher, which student is nearer to it."""
    found = []
    for row in _forced_gaps(results):
        if row["metric"] != "kl":
            continue
        label = in_brackets(results.labels.models[row["model"]], f"{row['variant']}, {row['taught_by']}")
        interval = results.gap_interval(row)
        if interval is None:
            said = f"compares with {row['subtrahend']} without predictions to judge by"
        elif not interval.excludes_zero:
            said = f"is not resolved from {row['subtrahend']}"
        else:
            said = f"is {'nearer' if row['difference'] < 0 else 'farther'} than {row['subtrahend']}"
        found.append(
            f"{label}, {row['task']}: {row['minuend']} {said} in its distance to {row['against']} "
            f"(KL {results.gap(row)} nats per answer token)."
        )
    return found


def _forced(results: Results) -> list[Row]:
    return [row for row in results.task_averages if row["method"] == FORCED and row["metric"] in METRICS]


def _forced_gaps(results: Results) -> list[Row]:
    return [row for row in results.task_gaps if row["method"] == FORCED and row["metric"] in METRICS]


def _table(results: Results, own: Sequence[Row]) -> Table:
    """Of rows of one model and task."""
    labels, first = results.labels, own[0]
    columns = ordered_columns(own, labels)
    of_task = [row for row in _forced_gaps(results) if (row["model"], row["task"]) == (first["model"], first["task"])]
    gaps = gap_columns_by(_measure, of_task)
    rows = []
    for measure in sorted({_measure(row) for row in own}, key=lambda found: (METRICS.index(found[0]), found[1])):
        cells = {labels.column(row): row for row in own if _measure(row) == measure}
        texts = [results.task_average(cells[name]) if name in cells else MISSING for name in columns]
        texts += [results.gap(by_measure[measure]) if measure in by_measure else MISSING for *_, by_measure in gaps]
        rows.append([_label(measure, own), *texts])
    compared = sorted({row["against"] for row in own if row["against"] is not None})
    notes = [NOTE, *([f"{TEACHER_NOTE} Compared with {', '.join(compared)}."] if compared else [])]
    notes += step_notes([row for row in own if row["is_primary"]], labels.column)
    header = ["metric", *columns, *(in_brackets(name, detail) for name, detail, _ in gaps)]
    title = f"Likelihood of gold answers: {labels.models[first['model']]}, {first['task']}"
    return Table(title, header, rows, notes, groups=[1 + len(columns)])


def _measure(row: Row) -> tuple[str, str]:
    """A metric, and the teacher that it is of."""
    return row["metric"], row["against"] or ""


def _label(measure: tuple[str, str], own: Sequence[Row]) -> str:
    """`kl (nats per answer token, lower is better)`; which teacher, where there are several."""
    metric, against = measure
    several = len({row["against"] for row in own if row["metric"] == metric}) > 1
    better = "lower" if lower_is_better(metric) else "higher"
    parts = [*([against] if several else []), unit_of(metric).name, f"{better} is better"]
    return f"{metric} ({', '.join(parts)})"
