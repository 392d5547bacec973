"""The fold of a label store that a student was not trained on."""

from __future__ import annotations

import shlex

import numpy as np

from logitbank.configs import ConfigError
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.preference import Pair
from logitbank.storage import LabelStore


def held_out_pairs(checkpoint: Checkpoint | None, url: str | None) -> list[Pair]:
    """The training comparisons of the fold that a checkpoint was not trained on, in the order of the store.

    Raises:
        ConfigError: a checkpoint that left no fold out, no store, or another than it was trained from.
        StoreError: no label store.
    """
    training = None if checkpoint is None else checkpoint.training
    place = "none" if checkpoint is None else shlex.quote(str(checkpoint.path))
    if training is None or training.held_out_fold is None:
        raise ConfigError(
            "evaluation.split: held_out is the fold that a student was not trained on; expected a --checkpoint of "
            f"train-student --held-out-fold, got {place}"
        )
    if url is None:
        raise ConfigError("--store: evaluation.split=held_out reads the fold from its label store; add --store URL")
    store = LabelStore.open(url)
    if store.info.fingerprint != training.store_fingerprint:
        raise ConfigError(
            f"--store: expected the store {training.store_fingerprint[:12]}, from which {place} was trained, got "
            f"{store.info.fingerprint[:12]}"
        )
    return [store.train.pair(int(row)) for row in np.flatnonzero(store.train.fold == training.held_out_fold)]
