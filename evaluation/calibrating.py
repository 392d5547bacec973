"""Fitting the temperature of a checkpoint: on validation, or on folds that it, or the students it is made of, left out.

Shape letters: N comparisons, C classes.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import ConfigError
from logitbank.errors import counted
from logitbank.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    Calibration,
    FittedOn,
    fit_temperature,
    measure,
    require_writable,
)
from logitbank.evaluation.checkpoints import Checkpoint, check_model, trained_from
from logitbank.evaluation.comparisons import (
    HELD_OUT,
    Comparisons,
    calibration_parts,
    comparisons_of,
    halves_of,
    require_unseen,
)
from logitbank.evaluation.opened import Opened, open_classification
from logitbank.evaluation.pair_scores import ScorerOpener, log_mean
from logitbank.preference import Pair

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Group:
    """Comparisons that the same models score.

    Attributes:
        what: they are, to read.
        scorers: the mean of their probabilities counts.
        pairs: N comparisons of both parts.
        fits_N: bool, which of them the temperature is fitted on; the others are its holdout.
    """

    what: str
    scorers: Sequence[Opened]
    pairs: Sequence[Pair]
    fits_N: NDArray[np.bool_]


def calibrate(opened: Opened, opener: ScorerOpener) -> None:
    """Fit the temperature and write it beside the weights, unless the one that is there is the same.

    Args:
        opened: what gets the temperature.
        opener: opens the students that it is the average of.

    Raises:
        ConfigError: rows that the model knows, no rows, or students that cannot be found.
        StoreError, TaskError: rows that cannot be read.
        OutputError: a place that cannot be written.
    """
    checkpoint = opened.job.checkpoint
    assert checkpoint is not None
    groups, fitted_on = _validation(opened, checkpoint) if opened.job.store is None else _folds(opened, opener)
    require_writable(checkpoint.path)
    fits_N = np.concatenate([group.fits_N for group in groups])
    pairs = [pair for group in groups for pair in group.pairs]
    fitted, held_out = (_part(pairs, rows_N, fitted_on.split) for rows_N in (fits_N, ~fits_N))
    hashes = fitted.contents.examples_hash, held_out.contents.examples_hash
    known = _known(checkpoint)
    if (
        known is not None
        and known.holds_for == opened.protocol
        and (known.calibration.examples_hash, known.holdout.examples_hash) == hashes
    ):
        print("calibration: already fitted on the same rows, weights and settings")
        return
    log_p_NC = np.concatenate([_scored(opened.job.condition, group) for group in groups])
    temperature = fit_temperature(log_p_NC[fits_N], fitted.targets_NC)
    found = Calibration(
        temperature,
        opened.protocol,
        measure(log_p_NC[fits_N], fitted.targets_NC, temperature, hashes[0]),
        measure(log_p_NC[~fits_N], held_out.targets_NC, temperature, hashes[1]),
        fitted_on,
    )
    _warn(found)
    print(f"calibration: wrote {shlex.quote(str(found.write(checkpoint.path)))}")


def applied(opened: Opened) -> Calibration | None:
    """The temperature beside the checkpoint, after a look at what it was fitted with; None if none is applied.

    Raises:
        ConfigError: it was fitted with something else, or cannot be read.
    """
    job = opened.job
    if job.checkpoint is None or job.raw:
        return None
    found = Calibration.read(job.checkpoint.path)
    if found is None:
        return None
    found.require(job.checkpoint.path, opened.protocol)
    split = job.config.evaluation.split
    if split == found.fitted_on.split or (split, found.fitted_on.split) == ("calibration", "validation"):
        print(f"warning: the temperature was fitted on rows of {split}")
    print(f"calibration: applied once to the averaged probabilities, {found.line()}")
    return found


def _validation(opened: Opened, checkpoint: Checkpoint) -> tuple[list[_Group], FittedOn]:
    """The calibration and holdout parts of validation."""
    parts = calibration_parts(opened.job.config)
    for comparisons, name in zip(parts, ("calibration", "holdout"), strict=True):
        require_unseen(checkpoint, comparisons, name, "--calibrate")
    both = [pair for each in parts for pair in each.pairs]
    return [_Group("validation", [opened], both, np.arange(len(both)) < len(parts[0].pairs))], FittedOn()


def _folds(opened: Opened, opener: ScorerOpener) -> tuple[list[_Group], FittedOn]:
    """The folds that students left out, each scored by those that left it out, and halved."""
    from logitbank.evaluation.held_out import held_out_folds  # zarr: validation needs none

    job = opened.job
    assert job.checkpoint is not None
    assert job.store is not None
    folds = held_out_folds(job.checkpoint, job.store)
    for fold in folds:
        for student in fold.students:
            rows = comparisons_of(fold.pairs, f"fold {fold.number}")
            require_unseen(student.checkpoint, rows, f"fold {fold.number}", "--calibrate")
    groups = [
        _Group(
            f"fold {fold.number}",
            [_student(opened, each.checkpoint, opener) for each in fold.students],
            fold.pairs,
            halves_of(fold.pairs),
        )
        for fold in folds
    ]
    weights = [scorer.model.weights for group in groups for scorer in group.scorers]
    store = folds[0].students[0].store
    own = weights == [opened.model.weights]
    return groups, FittedOn(HELD_OUT, store, tuple(fold.number for fold in folds), () if own else tuple(weights))


def _student(opened: Opened, student: Checkpoint, opener: ScorerOpener) -> Opened:
    """A student as the evaluated model is asked; its weights are closed again when its fold is scored."""
    job = opened.job
    if student is job.checkpoint:
        return opened
    config = dataclasses.replace(job.config, model=trained_from(job.config.model, [student]))
    check_model(config.model.name, [student])
    return open_classification(dataclasses.replace(job, config=config, checkpoint=student), opener)


def _part(pairs: Sequence[Pair], rows_N: NDArray[np.bool_], split: str) -> Comparisons:
    """Those of the comparisons that fit the temperature, or those that do not."""
    if not rows_N.any():
        raise ConfigError(
            f"--calibrate: expected prompts for both halves of the rows of {split}, got {len(pairs):,} rows in one; "
            "leave out --store to calibrate on validation"
        )
    return comparisons_of([pairs[int(row)] for row in np.flatnonzero(rows_N)], split)


def _scored(condition: str, group: _Group) -> Floats:
    """(N,C) float64, log of the mean probability over the group's models."""
    rows = comparisons_of(group.pairs, group.what)
    return log_mean(np.stack([each.score(f"{condition}, {group.what}", rows).averaged_NC for each in group.scorers]))


def _warn(found: Calibration) -> None:
    if found.is_bound:
        print(
            f"warning: the temperature is at the limit of its range, {LOWEST:g} to {HIGHEST:g}: "
            f"{counted(found.calibration.rows, 'row')} cannot tell one for these probabilities"
        )
    if found.harms_holdout:
        before, after = (figures["log_loss"] for figures in (found.holdout.before, found.holdout.after))
        print(
            f"warning: the temperature makes the log loss on the holdout rows worse: {before:.4f} to {after:.4f}; "
            "there may be too few calibration rows, or they differ from the holdout rows; use --no-calibration to "
            "evaluate without it"
        )


def _known(checkpoint: Checkpoint) -> Calibration | None:
    """The calibration that is there; None if it is unreadable too, since a new one replaces it."""
    try:
        return Calibration.read(checkpoint.path)
    except ConfigError:
        return None
