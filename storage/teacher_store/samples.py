"""Draws from the teacher's distribution, stored as tokens and how often each was drawn.

Random-sampling distillation (Anshumann et al., ACL 2025): a student's loss on draws is right in expectation,
where the loss on the largest logits alone is not. A store's `signal` says what its draws are from:

- `topk`: there are none;
- `sampled`: from all of the tokenizer's tokens; the store also keeps the largest logit;
- `hybrid`: from all of them but the K stored ones, which are exact.

Shape letters: T answer tokens, K ranks, M draws per answer token, and as many places for distinct tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.storage.teacher_store.encodings import Arrays, Encoding
from logitbank.storage.teacher_store.layout import ArraySpec
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.vocabulary import Vocabulary

SIGNALS = ("topk", "sampled", "hybrid")
MOST_DRAWS = 4096
BYTES_PER_DRAW = 0.45  # per answer token, fitted as those of the encodings; more where draws are few
LOG_MASS_FLOOR = -60.0  # where no token could be drawn, nothing was


def sample_arrays(draws: int, encoding: Encoding) -> list[ArraySpec]:
    """The arrays that hold M = `draws` draws; none without draws."""
    if not draws:
        return []
    return [
        ArraySpec("sample_positions", "uint32", draws, "pcodec-as-is", whole=True),
        ArraySpec("sample_counts", "uint16", draws, "pcodec-as-is", whole=True),
        ArraySpec("sample_mass", encoding.log_mass_dtype, None, "pcodec"),
    ]


def encode_samples(rows: TeacherRows, vocabulary: Vocabulary, encoding: Encoding) -> dict[str, NDArray[Any]]:
    """Positions in the vocabulary ascending, each less the one before, then places without a token (count 0)."""
    if not rows.sample_ids.shape[1]:
        return {}
    position = np.empty(len(vocabulary.tokens), dtype=np.int64)
    position[vocabulary.tokens] = np.arange(len(position))
    positions = np.where(rows.sample_counts > 0, position[rows.sample_ids], len(position))
    order = np.argsort(positions, axis=1, kind="stable")
    counts = np.take_along_axis(rows.sample_counts, order, axis=1)
    steps = np.diff(np.take_along_axis(positions, order, axis=1), axis=1, prepend=0)
    return {
        "sample_positions": np.where(counts > 0, steps, 0).astype(np.uint32),
        "sample_counts": counts.astype(np.uint16),
        "sample_mass": encoding.encode_log_mass(rows.sample_log_mass),
    }


def decode_samples(rows: TeacherRows, arrays: Arrays, vocabulary: Vocabulary, encoding: Encoding) -> TeacherRows:
    """The rows with the draws that `encode_samples` stored; distinct tokens come first."""
    ids = vocabulary.tokens[np.cumsum(arrays["sample_positions"], axis=1, dtype=np.int64)]
    counts = arrays["sample_counts"].astype(np.int32)
    mass = encoding.decode_log_mass(arrays["sample_mass"])
    return replace(rows, sample_ids=np.where(counts > 0, ids, 0), sample_counts=counts, sample_log_mass=mass)


def bytes_of_draws(draws: int) -> float:
    """Expected bytes of the draws of one answer token under one view."""
    return BYTES_PER_DRAW * draws


def check_samples(rows: TeacherRows, signal: str, draws: int, tokenizer_size: int) -> None:
    """Refuse draws that no teacher can have made; StoreError says which."""
    for problem in sample_problems(rows, signal, draws, tokenizer_size, slack=1e-3):
        raise StoreError(f"teacher signal: {problem}; this shard was not written")


def sample_problems(rows: TeacherRows, signal: str, draws: int, tokenizer_size: int, *, slack: float) -> Iterator[str]:
    """What is wrong with the draws of some rows.

    Draws are systematic (`teacher_cache/sampling.py`): a token is drawn as often as its share of the draws
    says, rounded up or down. That is checked where the store knows the share.

    Args:
        rows: the rows.
        signal: of the store.
        draws: per answer token.
        tokenizer_size: ids below this may be drawn.
        slack: nats by which stored values may be off.
    """
    ids, counts, mass = rows.sample_ids, rows.sample_counts, rows.sample_log_mass
    if ids.shape != (len(rows), draws) or counts.shape != ids.shape or mass.shape != (len(rows),):
        yield f"draws: expected ({len(rows)}, {draws}) tokens and counts, got {ids.shape} and {counts.shape}"
        return
    if not draws or not len(rows):
        return
    drawn = counts > 0
    total = counts.sum(axis=1)
    if (counts < 0).any() or (total[mass > LOG_MASS_FLOOR / 2] != draws).any() or not np.isin(total, (0, draws)).all():
        yield f"sample_counts: expected counts that add up to {draws}, got {total.min()} to {total.max()}"
    if (ids[drawn] < 0).any() or (ids[drawn] >= tokenizer_size).any():
        yield f"sample_ids: expected 0 to {tokenizer_size - 1}, got up to {ids[drawn].max()}"
    ordered = np.sort(np.where(drawn, ids, -1 - np.arange(draws)), axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        yield "sample_ids: a token twice in one row"
    if np.isnan(mass).any() or (mass > slack).any():
        yield "sample_mass: expected logarithms of probabilities, got NaN or more than 0"
    elif signal == "hybrid" and (np.exp(mass) > np.exp(rows.log_tail + 0.125) + slack).any():
        yield "sample_mass: more than the stored ranks leave"
    if signal == "hybrid" and (rows.token_ids[:, :, None] == np.where(drawn, ids, -1)[:, None, :]).any():
        yield "sample_ids: a token that is among the stored ranks"
    if signal == "sampled":
        share = np.exp(rows.logits[:, 0] - rows.logsumexp - mass.astype(np.float64))
        count = np.where(drawn & (ids == rows.token_ids[:, :1]), counts, 0).sum(axis=1)
        off = np.abs(count - draws * share) > 1 + draws * share * np.expm1(4 * slack) + slack
        if off[total == draws].any():  # nothing was drawn where all tokens together are next to impossible
            yield "sample_counts: the most likely token was not drawn as often as its probability says"
