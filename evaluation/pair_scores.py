"""Class probabilities for comparisons: read at several lengths and in both orders, averaged.

Shape letters: K readings, N comparisons, C classes, L tokens.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config, ConfigError
from logitbank.errors import TaskError
from logitbank.evaluation.checkpoints import Checkpoint, opened_models
from logitbank.models.classifier import open_classifier
from logitbank.models.devices import local_device
from logitbank.models.huggingface import context_tokens, require_quantization
from logitbank.models.pair_head import HEAD_SETTINGS, most_tokens, read_head_settings
from logitbank.models.pair_scoring import score_pairs
from logitbank.preference import CLASSES, SWAPPED, PackedPair, Pair
from logitbank.tasks.preference import PairPacker

LETTERS_HEAD = "letters"
Floats = NDArray[np.float64]


class Scorer(Protocol):
    """A model that gives class logits."""

    def __call__(self, packed: Sequence[PackedPair], progress: Callable[[int], object]) -> NDArray[np.float32]:
        """(N,C) float32 logits; `progress` is told how many comparisons are ready."""


ScorerOpener = Callable[[Config, Checkpoint | None], Scorer]


@dataclass(frozen=True)
class PairScores:
    """Log probabilities of N comparisons, before any temperature.

    Attributes:
        given_NC: of the answers in their order, averaged over lengths.
        swapped_NC: of the answers the other way round, columns swapped back; None if one order is read alone.
        longest: each comparison as it is read at the greatest length.
    """

    given_NC: Floats
    swapped_NC: Floats | None
    longest: Sequence[PackedPair]

    @property
    def averaged_NC(self) -> Floats:
        """Of the mean probability over both orders."""
        if self.swapped_NC is None:
            return self.given_NC
        return log_mean(np.stack([self.given_NC, self.swapped_NC]))


def open_scorer(config: Config, checkpoint: Checkpoint | None) -> Scorer:
    """Open the model that a checkpoint is, or the language model that is asked for a letter.

    Raises:
        ConfigError: a model or a head that cannot be opened.
    """
    if config.evaluation.load_in_8bit:
        require_quantization("evaluation.load_in_8bit")
    classifier = open_classifier(
        config,
        device=local_device(os.environ),
        checkpoint=None if checkpoint is None else checkpoint.path,
        load_in_8bit=config.evaluation.load_in_8bit,
    )

    def score(packed: Sequence[PackedPair], progress: Callable[[int], object]) -> NDArray[np.float32]:
        return score_pairs(classifier, packed, batch_tokens=config.evaluation.batch_tokens, progress=progress)

    return score


def as_read(config: Config, checkpoint: Checkpoint | None) -> Config:
    """The configuration with what the checkpoint's head decides: what it is, and how comparisons are packed for it.

    Args:
        config: as given.
        checkpoint: the trained weights; None for `model.name` itself.

    Raises:
        ConfigError: no head, or another head than `model.head` names.
    """
    directory = Path(config.model.name).expanduser() if checkpoint is None else checkpoint.path
    place = shlex.quote(str(directory))
    settings = read_head_settings(directory)
    if settings is not None and checkpoint is None and settings.head != config.head:
        settings = None  # a model that was exported with a head can still be asked for letters
    model, data = config.model, config.data
    if settings is None:
        if config.head != LETTERS_HEAD:
            raise ConfigError(
                f"{'model.name' if checkpoint is None else '--checkpoint'}: {place} has no {HEAD_SETTINGS}, so it "
                "has no trained head; give a --checkpoint that train-student or export-model "
                f"wrote for preferences, or let a language model answer with letters: model.head={LETTERS_HEAD}"
            )
        trained = most_tokens(config)
        model = dataclasses.replace(model, head=LETTERS_HEAD, pooling="last")
    else:
        if model.head not in (None, settings.head):
            raise ConfigError(f"model.head: expected {settings.head}, the head of {place}, got {model.head}")
        trained = settings.max_tokens
        model = dataclasses.replace(model, head=settings.head, pooling=settings.pooling)
        data = dataclasses.replace(data, keep_turns=settings.keep_turns)
    tokens = sorted(set(config.evaluation.tta_tokens or [trained]))
    evaluation = dataclasses.replace(config.evaluation, method="classify", tta_tokens=tokens)
    return dataclasses.replace(config, model=model, data=data, evaluation=evaluation)


def packers(config: Config, checkpoint: Checkpoint | None, tokenizer: Any) -> list[PairPacker]:
    """One for each length at which comparisons are read, the shortest first.

    Args:
        config: what `as_read` gave.
        checkpoint: the trained weights; None for `model.name` itself.
        tokenizer: of the model.

    Raises:
        ConfigError: a length above what the model reads, or one that leaves no room for the texts.
    """
    tokens, key = config.evaluation.tta_tokens, "evaluation.tta_tokens"
    weights_of, _ = opened_models(config.model, checkpoint)
    limits = [context_tokens(weights_of), tokenizer.model_max_length]
    longest = min(limit for limit in limits if limit is not None)
    if tokens[-1] > longest:
        raise ConfigError(
            f"{key}: expected at most {longest:,} tokens, the limit of {weights_of.name}, got {tokens[-1]:,}"
        )
    assert config.model.head is not None  # `as_read` names it
    try:
        return [
            PairPacker(tokenizer, max_tokens=each, keep_turns=config.data.keep_turns, head=config.model.head)
            for each in tokens
        ]
    except TaskError as error:
        raise ConfigError(f"{key}: {str(error).removeprefix('max_tokens: ')}") from None


def score_comparisons(
    scorer: Scorer,
    packers: Sequence[PairPacker],
    pairs: Sequence[Pair],
    progress: Callable[[int], object],
    *,
    swap_average: bool,
) -> PairScores:
    """Read comparisons at each length, in one order or both, and average the probabilities.

    Args:
        scorer: the model.
        packers: one for each length, the shortest first.
        pairs: N comparisons.
        progress: told how many readings of a comparison are ready.
        swap_average: whether both orders are read.

    Raises:
        ConfigError: a comparison whose logits are not finite.
    """
    given, swapped, packed = [], [], []
    for packer in packers:
        packed = list(packer.pack_all(pairs))
        given.append(_log_p(scorer(packed, progress), pairs))
        if swap_average:
            turned = list(packer.pack_all(pair.swapped() for pair in pairs))
            swapped.append(_log_p(scorer(turned, progress), pairs)[:, list(SWAPPED)])
    return PairScores(log_mean(np.stack(given)), log_mean(np.stack(swapped)) if swapped else None, packed)


def log_mean(log_p_KNC: Floats) -> Floats:
    """(N,C) float64, the log of the mean over K of probabilities given as logs."""
    return np.asarray(np.logaddexp.reduce(log_p_KNC, axis=0) - np.log(len(log_p_KNC)))


def _log_p(logits_NC: NDArray[np.float32], pairs: Sequence[Pair]) -> Floats:
    """(N,C) float64, log softmax of logits."""
    assert logits_NC.shape == (len(pairs), len(CLASSES))
    odd = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(odd):
        raise ConfigError(
            f"model.dtype: expected finite logits, got {logits_NC[odd[0]].tolist()} for {pairs[odd[0]].example_id} and "
            f"{len(odd) - 1:,} others; try model.dtype=float32"
        )
    wide_NC = logits_NC.astype(np.float64)
    return np.asarray(wide_NC - np.logaddexp.reduce(wide_NC, axis=1, keepdims=True))
