"""Scores of class probabilities as the tables need them: one entry for each series and place, with its differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.evaluation.report.intervals import Interval
from logitbank.evaluation.report.labels import Labels, Row, key_of, ordered_conditions
from logitbank.evaluation.report.results import Results, cell_key
from logitbank.evaluation.report.statistics import CLASSIFIED, HELD_OUT
from logitbank.experiment import CONDITIONS
from logitbank.tasks.scoring.classes import CLASS_METRICS

REFERENCE = "finetuned"  # what differences are to
FIRST_SPLITS = ("test", HELD_OUT)  # the order of splits; others follow by name

Place = tuple[str, str, str]  # task, language, split


@dataclass(frozen=True)
class Scored:
    """One series in one place.

    Attributes:
        row: any of its rows of `cells`.
        values: by metric; a metric that is not there was not measured.
    """

    row: Row
    values: dict[str, float]

    @property
    def place(self) -> Place:
        """What it was scored on."""
        return self.row["task"], self.row["language"], self.row["split"]


def scored_series(results: Results) -> list[Scored]:
    """Every series that has scores of class probabilities, by model and condition.

    The expected calibration error of several held-out folds is in no row; it comes from their predictions.
    """
    rows = [cell for cell in results.cells if cell["method"] == CLASSIFIED and cell["metric"] in CLASS_METRICS]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((*key_of(row), row["task"], row["language"], row["split"]), []).append(row)
    order = ordered_conditions(row["condition"] for row in rows)
    found = []
    for own in groups.values():
        values = {metric: results.replicates.values.get((cell_key(own[0]), metric)) for metric in CLASS_METRICS}
        values |= {row["metric"]: row["value"] for row in own}
        found.append(Scored(own[0], {metric: value for metric, value in values.items() if value is not None}))
    return sorted(found, key=lambda each: (each.row["model"], order.index(each.row["condition"]), key_of(each.row)))


def places_of(scored: Sequence[Scored]) -> list[Place]:
    """Where there are scores, the test split first."""

    def order(place: Place) -> tuple[Any, ...]:
        task, language, split = place
        return task, language, FIRST_SPLITS.index(split) if split in FIRST_SPLITS else len(FIRST_SPLITS), split

    return sorted({each.place for each in scored}, key=order)


def row_labels(own: Sequence[Scored]) -> list[str]:
    """Names of the series of one place: the condition, what tells it from others there, and the model of several."""
    labels = Labels.of([one.row for one in own])
    label = labels.series if len({one.row["model"] for one in own}) > 1 else labels.column
    return [label(one.row) for one in own]


def reference_of(results: Results, scored: Sequence[Scored], one: Scored) -> Scored | None:
    """The series that another one's difference is to; None if there is none that can be compared with it.

    For a student that is the finetuned one of its setup, so that the two differ in what they learned from. What has no
    such setup (a baseline, a merged student, the base model) is compared with the only finetuned series there is. Both
    were asked the same examples.
    """
    if one.row["condition"] == REFERENCE:
        return None
    able = [
        other
        for other in scored
        if other.row["condition"] == REFERENCE and other.place == one.place and _same_examples(results, one, other)
    ]
    own = [other for other in able if all(other.row[name] == one.row[name] for name in ("model", "setup"))]
    condition = CONDITIONS.get(one.row["condition"])
    if condition is not None and condition.trained:
        able = own
    return own[0] if own else able[0] if len(able) == 1 else None


def difference_interval(results: Results, one: Scored, other: Scored, metric: str) -> Interval | None:
    """Paired interval of one series' metric minus another's."""
    return results.replicates.difference([(cell_key(one.row), cell_key(other.row))], metric)


def _same_examples(results: Results, one: Scored, other: Scored) -> bool:
    asked = results.replicates.examples
    keys = cell_key(one.row), cell_key(other.row)
    if all(key in asked for key in keys):
        return asked[keys[0]] == asked[keys[1]]
    return one.row["examples_hash"] is not None and one.row["examples_hash"] == other.row["examples_hash"]
