"""Score the folds of a view, shard by shard, by a teacher that has not seen them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from logitbank.configs import ConfigError
from logitbank.errors import counted
from logitbank.models.pair_scoring import score_pairs
from logitbank.models.workers import Worker
from logitbank.preference import SeenPrompts, prompt_keys
from logitbank.progress import Progress
from logitbank.storage import LabelStore, LabelStoreBuilder, is_label_store
from logitbank.tasks.preference import Prepared
from logitbank.teacher_cache.preference.teachers import PairTeacher

logger = logging.getLogger(__name__)


@dataclass
class PairTally:
    """What scoring took.

    Attributes:
        comparisons: that were scored.
        tokens: of these.
        truncated: comparisons of which something was left out.
        seconds: of scoring and writing.
    """

    comparisons: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0


def folds_to_score(teacher: PairTeacher, asked: Sequence[int], folds: int) -> list[int]:
    """The folds that are asked for; otherwise the one that its training left out, or all if it left out none.

    Raises:
        ConfigError: another fold than the one that was left out.
    """
    held_out = teacher.held_out_fold
    if held_out is None:
        return list(asked or range(folds))
    for fold in asked:
        if fold != held_out:
            raise ConfigError(
                f"--fold: {teacher.name} was trained with --held-out-fold {held_out}, so it can only score fold "
                f"{held_out}, got {fold}"
            )
    return [held_out]


def refuse_seen(name: str, seen: SeenPrompts | None, prepared: Prepared, folds: Sequence[int]) -> None:
    """Refuse a teacher that learned from prompts of the folds, or was selected on them; the store checks it again.

    Raises:
        ConfigError: says how many prompts of which fold.
    """
    if seen is None:
        return
    keys = prompt_keys(prepared.train)
    for fold in folds:
        rows = np.flatnonzero(prepared.folds == fold)
        for way, prompts in (("trained on", seen.trained), ("selected on", seen.selected)):
            leaked = rows[np.isin(keys[rows], prompts)]
            if len(leaked):
                raise ConfigError(
                    f"--fold: {name} was {way} {counted(len(np.unique(keys[leaked])), 'prompt')} of fold {fold} (row "
                    f"{prepared.train[int(leaked[0])].row_id} is one), so its scores would not be out of fold; "
                    f"expected a teacher trained with --held-out-fold {fold}"
                )


def refuse_other_weights(url: str, view: str, weights: dict[int, tuple[str, str]]) -> None:
    """Refuse to take rows for a teacher's that another one scored.

    Args:
        url: the store, which need not exist.
        view: in which the teachers score.
        weights: fold -> name and hash of the weights of who scores it.

    Raises:
        ConfigError: a fold with finished shards of other weights.
    """
    if not is_label_store(url) or view not in (store := LabelStore.open(url)).views:
        return
    for shard in store.scorers(view):
        name, expected = weights.get(shard.fold, ("", shard.weights))
        if shard.weights != expected:
            raise ConfigError(
                f"--view {view}: fold {shard.fold} was scored by {shard.model} (weights {shard.weights[:12]}), got "
                f"{name} (weights {expected[:12]}); use another --view"
            )


def score_folds(
    builder: LabelStoreBuilder,
    prepared: Prepared,
    view: str,
    teacher: PairTeacher,
    folds: Sequence[int],
    *,
    device: torch.device,
    worker: Worker | None = None,
) -> PairTally:
    """Write every shard of some folds that a view still lacks.

    Args:
        builder: of the store.
        prepared: its rows.
        view: the teacher's name in the store.
        teacher: who scores.
        folds: which.
        device: where to open it.
        worker: of n, it does every n-th missing shard; None does all.

    Raises:
        ConfigError: a teacher that cannot be opened.
        StoreError: a view of another teacher, or one that had seen what it scored.
        MemoryExhaustedError: even single pairs do not fit in memory.
    """
    tally, started = PairTally(), time.monotonic()
    todo = [shard for fold in folds for shard in builder.missing_shards(view, fold)]
    if worker is not None:
        todo = [shard for shard in todo if shard % worker.count == worker.index]
    if not todo:
        return tally
    classifier = teacher.open(device)  # before the view is declared: what cannot be opened leaves nothing behind
    builder.add_view(view, teacher.identity(device), {})
    total = sum(len(builder.shard_rows(shard)) for shard in todo)
    with Progress("teacher", total, "comparisons", quiet=worker is not None and worker.index > 0) as progress:
        for shard in todo:
            packed = list(teacher.packer.pack_all(prepared.train[row] for row in builder.shard_rows(shard)))
            logits_NC = score_pairs(
                classifier, packed, batch_tokens=teacher.config.teacher.batch_tokens, progress=progress.advance
            )
            builder.write_shard(view, shard, logits_NC, teacher.scorer())
            tally.comparisons += len(packed)
            tally.tokens += sum(len(pair.ids) for pair in packed)
            tally.truncated += sum(pair.cut > 0 for pair in packed)
    tally.seconds = time.monotonic() - started
    return tally
