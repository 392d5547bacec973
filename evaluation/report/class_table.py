"""What is scored by class probabilities: series as rows, metrics and their differences to finetuned as columns."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.errors import counted
from logitbank.evaluation.report.class_scores import (
    REFERENCE,
    Place,
    Scored,
    difference_interval,
    places_of,
    reference_of,
    row_labels,
    scored_series,
)
from logitbank.evaluation.report.labels import Row, key_of
from logitbank.evaluation.report.results import Results, cell_key
from logitbank.evaluation.report.statistics import CLASSIFIED, HELD_OUT
from logitbank.evaluation.report.table import (
    MISSING,
    UNRESOLVED,
    Table,
    difference_with_interval,
    with_interval,
)
from logitbank.evaluation.report.units import unit_of
from logitbank.tasks import UNDETERMINED
from logitbank.tasks.scoring.classes import BINS, CLASS_METRICS

NAMES = {"log_loss": "log loss (nats)", "accuracy": "accuracy (%)", "brier": "Brier score", "ece": "ECE (%)"}
NOTE = (
    "Log loss, Brier score (0 to 2) and ECE, the expected calibration error of the likeliest class in "
    f"{BINS} bins: lower is better, so a difference below zero is better. Accuracy: higher is better. Intervals by a "
    "(paired) bootstrap over prompts. "
    f"{UNRESOLVED}: the interval contains zero, so the difference is not resolved."
)
REFERENCE_NOTE = (
    f"Differences are to {REFERENCE} of the same setup on the same examples; those of a condition that has no such "
    f"setup, such as a baseline or a merged student, to the only {REFERENCE} series."
)
POOLED_NOTE = "Each student is scored on the fold that its training left out; the rows of its folds are pooled."


def class_tables(results: Results) -> list[Table]:
    """One table for each task and split that is scored by class probabilities."""
    scored = scored_series(results)
    return [_table(results, [each for each in scored if each.place == place]) for place in places_of(scored)]


def class_sentences(results: Results) -> list[str]:
    """For each series that has a difference to finetuned: whether its log loss is better."""
    scored, found = scored_series(results), []
    for place in places_of(scored):
        own = [one for one in scored if one.place == place]
        for label, one in zip(row_labels(own), own, strict=True):
            other = reference_of(results, own, one)
            if other is not None and {"log_loss"} <= one.values.keys() & other.values.keys():
                found.append(f"{where(place)}, log loss: {label} is {_verdict(results, one, other)}.")
    return found


def _verdict(results: Results, one: Scored, other: Scored) -> str:
    """`better than finetuned (-0.0211 ±0.0098 nats)`."""
    interval = difference_interval(results, one, other, "log_loss")
    if interval is None:
        said = f"not comparable with {REFERENCE} without predictions"
    elif not interval.excludes_zero:
        said = f"not resolved from {REFERENCE}"
    else:
        said = f"{'better' if interval.high < 0 else 'worse'} than {REFERENCE}"
    return f"{said} ({_difference(results, one, other, 'log_loss')} nats)"


def _table(results: Results, own: Sequence[Scored]) -> Table:
    """Of the series of one place."""
    references = [reference_of(results, own, one) for one in own]
    compared = any(other is not None for other in references)
    labels, rows = row_labels(own), []
    for label, one, other in zip(labels, own, references, strict=True):
        texts = [_value(results, one, metric) for metric in CLASS_METRICS]
        if compared:
            texts += [_difference(results, one, other, metric) for metric in CLASS_METRICS]
        rows.append([label, *texts])
    header = ["condition", *(NAMES[metric] for metric in CLASS_METRICS)]
    if compared:
        header += [f"{NAMES[metric].partition(' (')[0]} −{REFERENCE}" for metric in CLASS_METRICS]
    notes = [NOTE, *([REFERENCE_NOTE] if compared else [])]
    notes += [POOLED_NOTE] if own[0].place[2] == HELD_OUT else []
    notes += [*_students(labels, own), *_early(results, labels, own)]
    return Table(f"Class probabilities: {where(own[0].place)}", header, rows, notes, groups=[1 + len(CLASS_METRICS)])


def where(place: Place) -> str:
    """`preference (test)`, with the language if there is one."""
    task, language, split = place
    return f"{task} ({split})" if language == UNDETERMINED else f"{task}/{language} ({split})"


def _value(results: Results, one: Scored, metric: str) -> str:
    value, unit = one.values.get(metric), unit_of(metric)
    return with_interval(unit.text(value), value, results.replicates.cell(cell_key(one.row), metric), unit)


def _difference(results: Results, one: Scored, other: Scored | None, metric: str) -> str:
    if other is None or metric not in one.values or metric not in other.values:
        return MISSING
    value, unit = one.values[metric] - other.values[metric], unit_of(metric)
    interval = difference_interval(results, one, other, metric)
    return difference_with_interval(unit.text(value, signed=True), value, interval, unit)


def _students(labels: Sequence[str], own: Sequence[Scored]) -> list[str]:
    """How many students each number is of, where one is of several."""
    said = []
    for label, one in zip(labels, own, strict=True):
        seeds, folds = one.row["seeds"], one.row["folds"]
        parts = [*([counted(folds, "fold")] if folds else []), *([counted(seeds, "seed")] if seeds > 1 else [])]
        if parts:
            said.append(f"{label} {' and '.join(parts)}")
    return [f"Of several students: {', '.join(said)}."] if said else []


def _early(results: Results, labels: Sequence[str], own: Sequence[Scored]) -> list[str]:
    """Which students were scored before the end of training, but for the best checkpoint of a run."""
    rows: Sequence[Row] = results.catalogue.rows(
        f"""
        SELECT * FROM final_scores WHERE method = '{CLASSIFIED}' AND is_primary AND step < max_steps
            AND NOT regexp_matches(coalesce(checkpoint, ''), '(^|/)best/*$')
        ORDER BY step
        """
    )
    said = []
    for label, one in zip(labels, own, strict=True):
        early = [row for row in rows if (key_of(row), row["split"]) == (key_of(one.row), one.row["split"])]
        said += [f"{label} at step {row['step']:,} of {row['max_steps']:,}" for row in early[:1]]
    return [f"Evaluated before the end of training: {', '.join(said)}."] if said else []
