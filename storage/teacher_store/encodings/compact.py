"""The encoding `compact`, the default: six times smaller than int32 + float16, and lossy inside stated bounds.

- The largest logit is kept as float32. Every other value is stored as a multiple of 5/64 nat below it, so it is
  within 5/128 nat. The other scalars are stored in steps of 1/512 nat.
- Tokens are renumbered by frequency (`codes`), so that common tokens are small numbers.
- Ranks are cut into blocks of 16. The first block keeps its order: codes as they are, values as distances
  from the rank before. In every other block the codes ascend, each stored as its difference from the
  one before, and the values follow that order. The order of ranks is not stored there: the values
  restore it, equal values by ascending code. The first k ranks are the first ceil(k / 16) blocks.
- The probability of all tokens beyond a block is stored in steps of 1/8 nat of its logarithm. One minus the
  stored probabilities would be noise where it is smaller than the rounding of the values.

Shape letters: T answer tokens, K ranks, B blocks of ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.storage.teacher_store.encodings.base import Arrays, Encoding, Slack, block_log_tails, log_tail_beyond
from logitbank.storage.teacher_store.layout import RANK_BLOCK, ArraySpec, rank_blocks
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.vocabulary import Vocabulary

GAP_STEP = 5 / 64  # nats between stored values
SCALAR_STEP = 1 / 512  # nats between stored scalars
TAIL_STEP = 1 / 8  # nats between stored log-probabilities of what is beyond a block
TILE = 256  # rows that are decoded at a time: their arrays stay in a processor's cache
INFINITY = 2**16 - 1  # marks -inf among gaps
INFINITY_GOLD = 2**32 - 1
# Fitted to what a small Qwen3 over six tasks took at K = 16 to 256, everything counted (docs/benchmarks.md).
FIXED_BYTES, RANK_BYTES = 17.0, 1.0  # per answer token


class CompactEncoding:
    """Tokens renumbered by context, sorted in blocks; values in steps of 5/64 nat."""

    name = "compact"
    slack = Slack(logits=GAP_STEP, scalars=SCALAR_STEP, tails=TAIL_STEP, log_mass=4e-3)
    log_mass_dtype = "uint32"

    def arrays(self, top_k: int) -> list[ArraySpec]:
        """See `Encoding.arrays`."""
        blocks = len(rank_blocks(top_k))
        return [
            ArraySpec("codes", "uint32", top_k, "pcodec-as-is"),
            ArraySpec("gaps", "uint16", top_k, "pcodec-as-is"),
            ArraySpec("block_gaps", "uint16", blocks, "pcodec-as-is", per_block=True),
            ArraySpec("tails", "uint16", blocks, "pcodec-as-is", per_block=True),
            ArraySpec("top_logit", "float32", None, "pcodec"),
            ArraySpec("logsumexp_gap", "uint32", None, "pcodec"),
            ArraySpec("entropy", "uint32", None, "pcodec"),
            ArraySpec("gold_gap", "uint32", None, "pcodec"),
            ArraySpec("gold_rank", "int32", None, "pcodec"),
        ]

    def encode(self, rows: TeacherRows, vocabulary: Vocabulary) -> dict[str, NDArray[Any]]:
        """See `Encoding.encode`."""
        top = rows.logits[:, 0].astype(np.float64)
        below = np.rint((top[:, None] - rows.logits) / GAP_STEP)  # steps, +inf where the logit is -inf
        codes, gaps, block_gaps = _encode_blocks(vocabulary.codes(rows.token_ids), below)
        scalars = {
            "logsumexp_gap": (rows.logsumexp - top) / SCALAR_STEP,
            "entropy": rows.entropy.astype(np.float64) / SCALAR_STEP,
            "gold_gap": (top - rows.gold_logit) / SCALAR_STEP,
        }
        tails = np.rint(block_log_tails(rows) / -TAIL_STEP)
        return {
            "codes": codes,
            "gaps": gaps,
            "block_gaps": block_gaps,
            "tails": _steps("log_tail", np.diff(tails, axis=1, prepend=0), INFINITY, TAIL_STEP).astype(np.uint16),
            "top_logit": rows.logits[:, 0],
            **{
                name: _steps(name, np.rint(value), INFINITY_GOLD, SCALAR_STEP).astype(np.uint32)
                for name, value in scalars.items()
            },
            "gold_rank": rows.gold_rank,
        }

    def decode(self, arrays: Arrays, top_k: int, vocabulary: Vocabulary) -> TeacherRows:
        """See `Encoding.decode`."""
        top = arrays["top_logit"].astype(np.float64)
        logsumexp = (top + arrays["logsumexp_gap"] * SCALAR_STEP).astype(np.float32)
        token_ids = np.empty((len(top), top_k), dtype=np.int32)
        logits = np.empty(arrays["codes"].shape, dtype=np.float32)
        for start in range(0, len(top), TILE):
            tile = slice(start, start + TILE)
            codes, below = _decode_blocks(*(arrays[name][tile] for name in ("codes", "gaps", "block_gaps")))
            # Float32 holds steps of 5/64 up to 10^5 nats exactly, so each value is rounded once.
            below *= np.float32(GAP_STEP)
            np.subtract(arrays["top_logit"][tile, None], below, out=logits[tile])
            token_ids[tile] = vocabulary.token_ids(codes[:, :top_k])
        gold_gap = arrays["gold_gap"]
        gold = top - gold_gap * SCALAR_STEP
        log_tail = arrays["tails"].sum(axis=1, dtype=np.int64) * -TAIL_STEP
        return TeacherRows(
            token_ids=token_ids,
            logits=logits[:, :top_k],
            logsumexp=logsumexp,
            entropy=(arrays["entropy"] * SCALAR_STEP).astype(np.float32),
            gold_logit=np.where(gold_gap == INFINITY_GOLD, -np.inf, gold).astype(np.float32),
            gold_rank=arrays["gold_rank"],
            log_tail=log_tail_beyond(log_tail, logits[:, top_k:], logsumexp),
        )

    def encode_log_mass(self, log_mass: NDArray[np.float32]) -> NDArray[Any]:
        """See `Encoding.encode_log_mass`."""
        steps: NDArray[np.uint32] = np.rint(log_mass / -SCALAR_STEP).astype(np.uint32)
        return steps

    def decode_log_mass(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """See `Encoding.decode_log_mass`."""
        return (stored * -SCALAR_STEP).astype(np.float32)

    def bytes_per_token(self, top_k: int) -> float:
        """See `Encoding.bytes_per_token`."""
        return FIXED_BYTES + RANK_BYTES * top_k


def _encode_blocks(
    codes: NDArray[np.uint32], below: NDArray[np.float64]
) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[np.uint16]]:
    """`codes`, `gaps` (T, K) and `block_gaps` (T, B) of codes and steps below the top, both in rank order."""
    columns = codes.shape[1]
    start = np.arange(columns) // RANK_BLOCK * RANK_BLOCK  # of each rank's block
    with np.errstate(invalid="ignore"):  # inf - inf: the marker is where `below` is inf
        before = np.diff(below, axis=1, prepend=0)
        gaps = _steps("logits", below - below[:, start], INFINITY, GAP_STEP, below).astype(np.uint16)
        first = slice(0, RANK_BLOCK)
        gaps[:, first] = _steps("logits", before[:, first], INFINITY, GAP_STEP, below[:, first])
        heads = slice(0, None, RANK_BLOCK)
        block_gaps = _steps("logits", before[:, heads], INFINITY, GAP_STEP, below[:, heads]).astype(np.uint16)
    codes = codes.copy()
    for span, blocks, width in _sorted_spans(columns):
        shape = (len(codes), blocks, width)
        # No code repeats in a row, so one sort of keys that hold both puts both in the order of codes.
        keys = codes[:, span].reshape(shape).astype(np.uint64) << np.uint64(16) | gaps[:, span].reshape(shape)
        keys.sort(axis=2)
        ascending = np.diff(keys >> np.uint64(16), axis=2, prepend=np.uint64(0))
        codes[:, span] = ascending.reshape(len(codes), -1)
        gaps[:, span] = (keys & np.uint64(0xFFFF)).reshape(len(codes), -1)
    return codes, gaps, block_gaps


def _decode_blocks(
    codes: NDArray[np.uint32], gaps: NDArray[np.uint16], block_gaps: NDArray[np.uint16]
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Codes and steps below the top in rank order, (T, C) for the C columns given; steps are inf for -inf."""
    tokens, columns = codes.shape
    ranked, below = np.empty_like(codes), np.empty((tokens, columns), dtype=np.float32)
    first = slice(0, RANK_BLOCK)
    ranked[:, first], below[:, first] = codes[:, first], np.cumsum(gaps[:, first], axis=1, dtype=np.float32)
    for span, blocks, width in _sorted_spans(columns):
        shape = (tokens, blocks, width)
        ascending = np.cumsum(codes[:, span].reshape(shape), axis=2, dtype=np.uint32)
        code, gap = _sort_by_value(ascending, gaps[:, span].reshape(shape))
        # A block begins `block_gaps` below the last value of the one before.
        number = span.start // RANK_BLOCK
        largest = block_gaps[:, number : number + blocks].astype(np.float32)
        largest[:, 0] += below[:, span.start - 1]
        largest[:, 1:] += gap[:, :-1, -1]
        gap += np.cumsum(largest, axis=1)[:, :, None]
        ranked[:, span], below[:, span] = code.reshape(tokens, -1), gap.reshape(tokens, -1)
    if gaps.max(initial=0) == INFINITY or block_gaps.max(initial=0) == INFINITY:
        infinite = np.repeat(block_gaps == INFINITY, RANK_BLOCK, axis=1)[:, :columns]
        for block in rank_blocks(columns):  # inside a block, -inf comes last
            infinite[:, block] |= np.sort(gaps[:, block] == INFINITY, axis=1)
        below[np.logical_or.accumulate(infinite, axis=1)] = np.inf  # and so is every rank below
    return ranked, below


def _sorted_spans(columns: int) -> list[tuple[slice, int, int]]:
    """The columns of all whole blocks but the first, and of the narrower last one: (columns, blocks, width)."""
    whole = max(columns // RANK_BLOCK, 1)
    spans = [
        (slice(RANK_BLOCK, whole * RANK_BLOCK), whole - 1, RANK_BLOCK),
        (slice(whole * RANK_BLOCK, columns), 1, columns - whole * RANK_BLOCK),
    ]
    return [(span, blocks, width) for span, blocks, width in spans if blocks and width > 0]


def _sort_by_value(
    codes: NDArray[np.uint32], gaps: NDArray[np.uint16]
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Both (T, B, W) sorted along W by gap, equal gaps by code: one sort of keys that hold both."""
    bits = max(int(codes.max(initial=0)).bit_length(), 1)
    whole = np.uint32 if int(gaps.max(initial=0)).bit_length() + bits <= 32 else np.uint64
    keys = np.left_shift(gaps, bits, dtype=whole)
    keys |= codes
    keys.sort(axis=-1)
    ranked = (keys & whole((1 << bits) - 1)).astype(np.uint32, copy=False)
    keys >>= whole(bits)
    return ranked, keys.astype(np.float32)


def _steps(
    name: str,
    steps: NDArray[np.floating[Any]],
    marker: int,
    step: float,
    value: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.int64]:
    """Whole steps, the marker where `value` (or the step itself) is +inf; more than a type holds is refused."""
    infinite = np.isposinf(steps if value is None else value)
    finite = np.where(infinite, 0, steps)
    if (finite > marker - 1).any():
        raise StoreError(
            f"store.encoding: compact holds {name} up to {(marker - 1) * step:g} nats apart, "
            f"got {float(finite.max() * step):g}; use exact"
        )
    return np.where(infinite, marker, np.maximum(finite, 0)).astype(np.int64)


COMPACT: Encoding = CompactEncoding()
