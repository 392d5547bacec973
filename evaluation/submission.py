"""A file of class probabilities, one row for each test comparison, from the predictions of one or several runs.

Shape letters: R runs, N comparisons, C classes.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shlex
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import OutputError, StoreError, counted
from logitbank.evaluation.submitted_runs import Member, chosen_members, held_out_losses
from logitbank.preference import CLASSES, row_id_of
from logitbank.storage.results import Catalogue, names_of, read_rows
from logitbank.tasks.scoring.classes import class_metrics, class_statistics

COLUMNS = ("id", *(f"winner_{name}" for name in CLASSES))
READ = ("example_id", "question", "gold", "statistics", "split", "method")
MOST_OFF = 1e-4  # of the sum of a row's probabilities from 1: float32 sums are nearer

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Submission:
    """What a submission says.

    Attributes:
        ids: of its N rows, as they are in the input file, in its order.
        probabilities_NC: float64, every row summing to 1.
        members: the runs whose probabilities were averaged.
        weights: of each, their sum 1.
        held_out: log loss of each on the fold that it left out, nats; empty unless the weights come from it.
        metrics: of the average, where the test comparisons have labels.
    """

    ids: Sequence[str]
    probabilities_NC: Floats
    members: Sequence[Member]
    weights: Sequence[float]
    held_out: Sequence[float]
    metrics: Mapping[str, float]

    def table(self) -> str:
        """The rows as CSV: enough digits to read the same float64 back."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row_id, row in zip(self.ids, self.probabilities_NC.tolist(), strict=True):
            writer.writerow([row_id, *map(repr, row)])
        return file.getvalue()

    def about(self, ensemble: str) -> dict[str, Any]:
        """What it was made from, as JSON."""
        held_out: Sequence[float | None] = self.held_out or [None] * len(self.members)
        runs = [
            {**member.about(), "weight": weight, "held_out_log_loss": loss}
            for member, weight, loss in zip(self.members, self.weights, held_out, strict=True)
        ]
        return {"ensemble": ensemble, "rows": len(self.ids), "runs": runs, "metrics": dict(self.metrics)}


@dataclass(frozen=True)
class _Answers:
    """The predictions of one run: ids and (N,3) probabilities in the order of the input, and what was asked."""

    ids: Sequence[str]
    probabilities_NC: Floats
    asked: Mapping[str, str]  # id -> digest of texts and label
    targets_NC: Floats | None


def make_submission(
    catalogue: Catalogue,
    results: Sequence[Path],
    ensemble: str,
    *,
    conditions: Sequence[str] = (),
    runs: Sequence[str] = (),
) -> Submission:
    """Average the probabilities of runs over the test comparisons.

    Args:
        catalogue: of the result directories.
        results: these directories.
        ensemble: `equal`: the plain mean. `cv`: weights 1/log loss, each run's on the fold that its training left out.
        conditions: whose runs; none: those of the only condition that was evaluated on the test split.
        runs: these alone.

    Raises:
        ConfigError: runs that are not said unambiguously, or no log loss to weigh them by.
        StoreError: runs over different comparisons, or predictions that are not probabilities.
    """
    members = chosen_members(catalogue, conditions=conditions, runs=runs)
    answers = [_answers(results, member.run) for member in members]
    for member, other in zip(members[1:], answers[1:], strict=True):
        _require_same(members[0].run, answers[0], member.run, other)
    held_out = held_out_losses(catalogue, members, results) if ensemble == "cv" else []
    weights = np.array([1 / loss for loss in held_out] or [1.0] * len(members))
    weights /= weights.sum()
    first = answers[0]
    mean_NC = np.zeros_like(first.probabilities_NC)
    for weight, own in zip(weights, answers, strict=True):
        place = {row_id: index for index, row_id in enumerate(own.ids)}
        mean_NC += weight * own.probabilities_NC[[place[row_id] for row_id in first.ids]]
    mean_NC /= mean_NC.sum(axis=1, keepdims=True)
    metrics: dict[str, float] = {}
    if first.targets_NC is not None:
        statistics = class_statistics(mean_NC, first.targets_NC)
        metrics = {name: float(v) for name, v in class_metrics({n: s.mean() for n, s in statistics.items()}).items()}
    return Submission(first.ids, mean_NC, members, weights.tolist(), held_out, metrics)


def write_submission(submission: Submission, ensemble: str, output: Path) -> Path:
    """Write the rows, and beside them `OUTPUT.json`, which says what they were made from; both whole or neither.

    Returns:
        The file beside.

    Raises:
        OutputError: a place that cannot be written.
    """
    beside = output.with_name(f"{output.name}.json")
    contents = {beside: json.dumps(submission.about(ensemble), indent=2) + "\n", output: submission.table()}
    partials = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial") for path in contents}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if taken := [path for path in contents if path.is_dir()]:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(taken[0]))
        for path, content in contents.items():
            partials[path].write_text(content, encoding="utf-8")
        for path, partial in partials.items():
            partial.replace(path)
    except OSError as error:
        raise OutputError(f"--output: cannot write {error.filename or output}: {error.strerror or error}") from None
    finally:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return beside


def said_of(submission: Submission, output: Path, beside: Path) -> list[str]:
    """What was written, to read."""
    losses = [f"  held-out log loss {loss:.4f}" for loss in submission.held_out] or [""] * len(submission.members)
    lines = [
        f"{member.run}  weight {weight:.4f}{loss}"
        for member, weight, loss in zip(submission.members, submission.weights, losses, strict=True)
    ]
    limits = {member.max_samples for member in submission.members}
    if len(submission.ids) in limits:
        lines.append(
            f"warning: {counted(len(submission.ids), 'row')}, as many as evaluation.max_samples allows; raise it and "
            "evaluate again if the test file has more"
        )
    if submission.metrics:
        lines.append("  ".join(f"{name} {value:.4f}" for name, value in submission.metrics.items()))
    rows, runs = counted(len(submission.ids), "row"), counted(len(submission.members), "run")
    return [*lines, f"wrote {shlex.quote(str(output))} ({rows} from {runs}) and {shlex.quote(str(beside))}"]


def test_predictions(results: Sequence[Path], run: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a run's predictions of class probabilities on the test split, in the order of its file."""
    return [
        row
        for directory in results
        for name in names_of(directory, "predictions", f"{run}@")
        for row in read_rows(directory, "predictions", name, columns) or ()
        if row["split"] == "test" and row["method"] == "classify"
    ]


def _answers(results: Sequence[Path], run: str) -> _Answers:
    """The predictions of a run on the test split, in the order of its file, which is that of the input."""
    rows = test_predictions(results, run, READ)
    ids = [row_id_of(row["example_id"]) for row in rows]
    (most, times), *_ = Counter(ids).most_common(1) or [("", 1)]
    if times > 1:
        raise StoreError(f"predictions of {run}: expected each id once, got {most!r} {times} times")
    golds = [None if row["gold"] is None else json.loads(row["gold"]) for row in rows]
    targets = [[gold[name] for name in CLASSES] for gold in golds if gold is not None]
    asked = {
        row_id: hashlib.sha256(json.dumps([row["question"], row["gold"]]).encode()).hexdigest()
        for row_id, row in zip(ids, rows, strict=True)
    }
    whole = np.array(targets, dtype=np.float64) if rows and len(targets) == len(rows) else None
    return _Answers(ids, _probabilities(run, ids, rows), asked, whole)


def _probabilities(run: str, ids: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Floats:
    """(N,3) float64, every row summing to 1."""
    names = [f"p_{name}" for name in CLASSES]
    found = []
    for row_id, row in zip(ids, rows, strict=True):
        statistics = dict(row["statistics"])
        if missing := [name for name in names if name not in statistics]:
            raise StoreError(
                f"predictions of {run}: expected {', '.join(names)} for {row_id!r}, {missing[0]} is missing"
            )
        found.append([statistics[name] for name in names])
    values_NC = np.array(found, dtype=np.float64).reshape(-1, len(CLASSES))
    sums_N = values_NC.sum(axis=1)
    wrong_N = ~(np.all(np.isfinite(values_NC) & (values_NC >= 0), axis=1) & (np.abs(sums_N - 1) <= MOST_OFF))
    if wrong_N.any():
        index = int(wrong_N.argmax())
        raise StoreError(
            f"predictions of {run}: expected probabilities that sum to 1 for {ids[index]!r}, got "
            f"{', '.join(f'{value:g}' for value in values_NC[index])}; evaluate it again"
        )
    return np.asarray(values_NC / sums_N[:, None])


def _require_same(first: str, one: _Answers, run: str, other: _Answers) -> None:
    """Refuse runs over different comparisons.

    Raises:
        StoreError: names a comparison that only one of them has, or that they have with different texts or labels.
    """
    if one.asked == other.asked:
        return
    for here, a, there, b in ((first, one, run, other), (run, other, first, one)):
        if lacking := [row_id for row_id in a.ids if row_id not in b.asked]:
            raise StoreError(
                f"--ensemble: expected runs over the same comparisons, but {here} has {len(lacking):,} ids that "
                f"{there} lacks, such as {lacking[0]!r}; evaluate both on one test file, or name other runs by --run"
            )
    changed = next(row_id for row_id in one.ids if one.asked[row_id] != other.asked[row_id])
    raise StoreError(
        f"--ensemble: expected runs over the same comparisons, but {changed!r} has other texts or another label "
        f"in {run} than in {first}; evaluate both on one test file, or name other runs by --run"
    )
