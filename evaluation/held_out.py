"""The folds of a label store that a checkpoint was not trained on, and which students may score them."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.configs import ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.evaluation.checkpoints import Checkpoint, open_checkpoint
from logitbank.experiment import EXPORT_RECORD
from logitbank.models.weights import weights_hash
from logitbank.preference import Pair
from logitbank.storage import LabelStore


@dataclass(frozen=True)
class Student:
    """A checkpoint and the fold that it was not trained on.

    Attributes:
        checkpoint: its weights.
        fold: number of the fold.
        store: fingerprint of the label store that has it.
    """

    checkpoint: Checkpoint
    fold: int
    store: str


@dataclass(frozen=True)
class HeldOutFold:
    """A fold and who did not see it.

    Attributes:
        number: of the fold.
        students: at least one.
        pairs: its comparisons, in the order of the store.
    """

    number: int
    students: Sequence[Student]
    pairs: Sequence[Pair]


def held_out_pairs(checkpoint: Checkpoint | None, url: str | None) -> list[Pair]:
    """The training comparisons of the fold that a checkpoint was not trained on, in the order of the store.

    Raises:
        ConfigError: a checkpoint that left no fold out, no store, or another than it was trained from.
        StoreError: no label store.
    """
    student = None if checkpoint is None else _student(checkpoint)
    if student is None:
        raise ConfigError(
            "evaluation.split: held_out evaluates the fold that a student was not trained on; expected a "
            "--checkpoint of "
            f"train-student --held-out-fold, got {'none' if checkpoint is None else _place(checkpoint.path)}"
        )
    if url is None:
        raise ConfigError("--store: evaluation.split=held_out reads the fold from its label store; add --store URL")
    return _pairs(_open_store(url, [student]), student.fold)


def held_out_folds(checkpoint: Checkpoint, url: str) -> list[HeldOutFold]:
    """The folds that a checkpoint, or each student that it is the average of, was not trained on.

    An export whose students left out one and the same fold did not see it either, and scores it itself. Any other
    average saw every fold, so the students that left a fold out score it.

    Args:
        checkpoint: what train-student or export-model wrote.
        url: of the label store.

    Returns:
        By number.

    Raises:
        ConfigError: a student that left no fold out or cannot be found, or another store.
        StoreError: no label store.
    """
    students = _students(checkpoint)
    if len({each.fold for each in students}) == 1:
        students = [dataclasses.replace(students[0], checkpoint=checkpoint)]
    store = _open_store(url, students)
    return [
        HeldOutFold(number, [each for each in students if each.fold == number], _pairs(store, number))
        for number in sorted({each.fold for each in students})
    ]


def _student(checkpoint: Checkpoint) -> Student | None:
    training = checkpoint.training
    if training is None or training.held_out_fold is None:
        return None
    return Student(checkpoint, training.held_out_fold, training.store_fingerprint)


def _students(checkpoint: Checkpoint) -> list[Student]:
    """The students that a checkpoint is made of, through exports of exports."""
    student = _student(checkpoint)
    if student is not None:
        return [student]
    sources = [] if checkpoint.training is not None else _sources(checkpoint.path)
    if not sources:
        raise ConfigError(
            "--calibrate: with --store, calibration uses the fold that the student left out; expected a --checkpoint "
            f"of train-student --held-out-fold, or an export of one, got {_place(checkpoint.path)}; leave out --store "
            "to calibrate on validation"
        )
    return [each for source in sources for each in _students(_open_source(checkpoint.path, **source))]


def _sources(directory: Path) -> list[dict[str, Any]]:
    """`path` and `weights` of what a directory was exported from; none if it was not exported."""
    path = directory / EXPORT_RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [{"path": Path(each["path"]), "weights": each["weights"]} for each in content["checkpoints"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{_place(path)}: cannot be read ({' '.join(str(error).split())}); export it again") from None


def _open_source(exported: Path, path: Path, weights: str) -> Checkpoint:
    """What was exported, as it was then.

    Raises:
        ConfigError: it is gone, or was trained since.
    """
    try:
        found = open_checkpoint(path)
    except ConfigError:
        raise ConfigError(
            f"--calibrate: expected {_place(path)}, from which {_place(exported)} was exported and which scores the "
            "fold that it left out, but there is no model; restore it, or leave out --store to calibrate on validation"
        ) from None
    if weights_hash(ModelConfig(name=str(path))) != weights:
        raise ConfigError(
            f"--calibrate: {_place(path)} has changed since {_place(exported)} was exported from it; export it again"
        )
    return found


def _open_store(url: str, students: Sequence[Student]) -> LabelStore:
    store = LabelStore.open(url)
    for student in students:
        if store.info.fingerprint != student.store:
            raise ConfigError(
                f"--store: expected the store {student.store[:12]}, from which {_place(student.checkpoint.path)} was "
                f"trained, got {store.info.fingerprint[:12]}"
            )
    return store


def _pairs(store: LabelStore, fold: int) -> list[Pair]:
    return [store.train.pair(int(row)) for row in np.flatnonzero(store.train.fold == fold)]


def _place(path: Path) -> str:
    return shlex.quote(str(path))
