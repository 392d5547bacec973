"""Which comparisons are evaluated: a split of the files or the fold that a student was not trained on."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config, ConfigError, data_settings
from logitbank.errors import counted
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.evaluation.questions import Contents, contents_of_asked
from logitbank.preference import CLASSES, SEEN_PROMPTS, TASK, Pair, SeenPrompts, prompt_keys
from logitbank.tasks.preference import PARTS, load_pairs, part_of

HELD_OUT = "held_out"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparisons:
    """N comparisons with or without labels.

    Attributes:
        pairs: in the order of their file or store.
        labelled: whether they have targets, all of them.
        contents: what they ask, in short.
    """

    pairs: Sequence[Pair]
    labelled: bool
    contents: Contents

    @property
    def targets_NC(self) -> Floats:
        """(N,3) float64, what people said."""
        return np.array([pair.target for pair in self.pairs], dtype=np.float64)


def evaluated_comparisons(config: Config, checkpoint: Checkpoint | None, store: str | None) -> Comparisons:
    """The comparisons of `evaluation.split`, at most `evaluation.max_samples` of them.

    Args:
        config: names the split.
        checkpoint: whose fold `held_out` is.
        store: URL of the label store that has this fold; for `held_out` alone.

    Raises:
        ConfigError: no store or fold for `held_out`, a store for anything else, a held-out fold that the checkpoint
            saw, or labels of some rows only.
        TaskError, StoreError: rows that cannot be read.
    """
    split = config.evaluation.split
    if split == HELD_OUT:
        from logitbank.evaluation.held_out import held_out_pairs  # zarr: files need none

        pairs = held_out_pairs(checkpoint, store)
    elif store is not None:
        raise ConfigError(
            f"--store: names the label store of evaluation.split={HELD_OUT} or of --calibrate, got "
            f"evaluation.split={split}; leave it out"
        )
    else:
        pairs = load_pairs(split, data_settings(config))
    drawn = _drawn(pairs, config.evaluation.max_samples, config.evaluation.sample_seed)
    if len(drawn) < len(pairs):
        print(f"{TASK}: {len(drawn):,} of {counted(len(pairs), 'comparison')} of {split} (evaluation.max_samples)")
    found = comparisons_of(drawn, split)
    if split == HELD_OUT:
        assert checkpoint is not None  # it has the fold
        require_unseen(checkpoint, found, split, "evaluation.split")
    elif checkpoint is not None:
        _tell_of_seen(checkpoint, found.pairs, split)
    return found


def comparisons_of(pairs: Sequence[Pair], split: str) -> Comparisons:
    """Comparisons of a split.

    Raises:
        ConfigError: none, or labels of some rows only.
    """
    if not pairs:
        raise ConfigError(
            f"{TASK}: expected comparisons in {split}, got none; give it rows, or lower preference.selection"
        )
    labelled = sum(pair.target is not None for pair in pairs)
    if 0 < labelled < len(pairs):
        raise ConfigError(
            f"evaluation.split: expected labels in all rows of {split} or in none, got them in {labelled:,} of "
            f"{len(pairs):,}; split the file"
        )
    asked = [(pair.example_id, text_of(pair), gold_of(pair)) for pair in pairs]
    return Comparisons(pairs, labelled > 0, contents_of_asked(asked))


def calibration_parts(config: Config) -> tuple[Comparisons, Comparisons]:
    """All comparisons of the parts `calibration` and `holdout` of validation.

    Raises:
        ConfigError: one of them is empty.
        TaskError: rows that cannot be read.
    """
    pairs = load_pairs("validation", data_settings(config))
    numbers = part_of(prompt_keys(pairs), config.preference.selection)
    calibration, holdout = (
        comparisons_of([pair for pair, number in zip(pairs, numbers, strict=True) if PARTS[number] == part], part)
        for part in ("calibration", "holdout")
    )
    return calibration, holdout


def halves_of(pairs: Sequence[Pair]) -> NDArray[np.bool_]:
    """(N,) bool, which comparisons of held-out folds fit a temperature; the others are its holdout.

    Prompts are divided as those of validation are, so neither other rows nor their order move one.
    """
    numbers = part_of(prompt_keys(pairs), selection=0.0)
    return np.asarray(numbers == PARTS.index("calibration"))


def require_unseen(checkpoint: Checkpoint, comparisons: Comparisons, split: str, what: str) -> None:
    """Refuse rows from which a checkpoint learned, or which chose it.

    Args:
        checkpoint: with `seen_prompts.npz` beside its weights.
        comparisons: rows that it must not know.
        split: their name.
        what: the option that needs it, for messages.

    Raises:
        ConfigError: it saw some, or there is no record of what it saw.
    """
    seen = SeenPrompts.read(checkpoint.path)
    place = shlex.quote(str(checkpoint.path))
    if seen is None:
        raise ConfigError(
            f"{what}: {place} has no {SEEN_PROMPTS}, so it is unknown whether {split} is new to it; use a checkpoint "
            "that "
            "train-student or export-model wrote"
        )
    keys = prompt_keys(comparisons.pairs)
    for known, how in ((seen.trained, "was trained on"), (seen.selected, "was selected on")):
        if shared := int(np.isin(keys, known).sum()):
            raise ConfigError(
                f"{what}: expected rows that are new to {place}, but it {how} the prompts of {shared:,} of the "
                f"{len(keys):,} rows of {split}; train it with the same preference.* files and shares as are given here"
            )


def text_of(pair: Pair) -> str:
    """The texts of a comparison as JSON, for rows of `predictions`."""
    texts = {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b}
    return json.dumps(texts, ensure_ascii=False)


def gold_of(pair: Pair) -> str | None:
    """The target of a comparison as JSON; None if unknown."""
    return None if pair.target is None else json.dumps(dict(zip(CLASSES, pair.target, strict=True)))


def _drawn(pairs: Sequence[Pair], limit: int | None, seed: int) -> list[Pair]:
    """At most `limit` comparisons in their order: those whose content comes first in an order made by the seed."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    ranks = [hashlib.blake2b(f"{seed}/{pair.pair_key}".encode(), digest_size=8).digest() for pair in pairs]
    return [pairs[row] for row in sorted(sorted(range(len(pairs)), key=lambda row: (ranks[row], row))[:limit])]


def _tell_of_seen(checkpoint: Checkpoint, pairs: Sequence[Pair], split: str) -> None:
    """Say how many comparisons a checkpoint knows: its scores on them do not measure it."""
    seen = SeenPrompts.read(checkpoint.path)
    if seen is None:
        return
    keys = prompt_keys(pairs)
    for known, how in ((seen.trained, "was trained on"), (seen.selected, "was selected on")):
        if shared := int(np.isin(keys, known).sum()):
            print(f"warning: {checkpoint.path} {how} the prompts of {shared:,} of {len(keys):,} rows of {split}")
