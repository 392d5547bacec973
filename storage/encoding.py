"""How top-K logits become arrays: `exact`, `float16`, `compact`.

An encoding maps `TeacherRows` to named arrays on the answer-token axis and back. `exact` and
`float16` store what the name says, in rank order. `compact` (the default) is lossy inside stated
bounds and about six times smaller than int32 + float16:

- the largest logit is kept as float32; every other value as a multiple of 1/16 nat below it, hence
  within 1/32 nat;
- tokens are renumbered by frequency (`codes`), so that common tokens are small numbers;
- inside a block of 64 ranks the codes ascend and the values follow the same order. The order of
  ranks inside a block is not stored: the values restore it, equal values by ascending code. A
  block is still a unit of ranks, so the first k ranks are the first ceil(k / 64) blocks.

Shape letters: T answer tokens, K ranks, B blocks of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.layout import RANK_BLOCK, ArraySpec
from storage.rows import TeacherRows

Arrays = Mapping[str, NDArray[Any]]

GAP_STEP = 1 / 16  # nats between stored values
LOGSUMEXP_STEP = 1 / 4096
ENTROPY_STEP = 1 / 4096
GOLD_STEP = 1 / 1024
MINUS_INFINITY = np.uint16(65535)
MINUS_INFINITY_GOLD = np.uint32(2**32 - 1)


class Encoding(Protocol):
    """One way to lay teacher rows out as arrays."""

    name: str

    def arrays(self, top_k: int) -> list[ArraySpec]:
        """The arrays that hold K = `top_k` ranks."""

    def encode(self, rows: TeacherRows, code_of_token: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """Arrays of T rows. StoreError where a value cannot be held within the bounds."""

    def decode(self, arrays: Arrays, top_k: int, token_of_code: NDArray[np.int32]) -> TeacherRows:
        """Rows with the first `top_k` ranks; arrays may hold more, in whole blocks of ranks."""


class PlainEncoding:
    """Rank order, float32 or float16 logits, float32 scalars."""

    def __init__(self, name: str, logits_dtype: str) -> None:
        self.name = name
        self._logits_dtype = logits_dtype

    def arrays(self, top_k: int) -> list[ArraySpec]:
        """See `Encoding.arrays`."""
        return [
            ArraySpec("token_ids", "int32", top_k, "pcodec"),
            ArraySpec("logits", self._logits_dtype, top_k, "pcodec"),
            ArraySpec("logsumexp", "float32", None, "pcodec"),
            ArraySpec("entropy", "float32", None, "pcodec"),
            ArraySpec("gold_logit", "float32", None, "pcodec"),
            ArraySpec("gold_rank", "int32", None, "pcodec"),
        ]

    def encode(self, rows: TeacherRows, code_of_token: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """See `Encoding.encode`."""
        limit = np.finfo(self._logits_dtype).max
        finite = rows.logits[np.isfinite(rows.logits)]
        if len(finite) and np.abs(finite).max() > limit:
            raise StoreError(
                f"store.encoding: {self.name} holds logits up to {limit:g}, got {np.abs(finite).max():g}; use exact"
            )
        return {
            "token_ids": rows.token_ids,
            "logits": rows.logits.astype(self._logits_dtype),
            "logsumexp": rows.logsumexp,
            "entropy": rows.entropy,
            "gold_logit": rows.gold_logit,
            "gold_rank": rows.gold_rank,
        }

    def decode(self, arrays: Arrays, top_k: int, token_of_code: NDArray[np.int32]) -> TeacherRows:
        """See `Encoding.decode`."""
        return TeacherRows(
            token_ids=arrays["token_ids"][:, :top_k],
            logits=arrays["logits"][:, :top_k].astype(np.float32),
            logsumexp=arrays["logsumexp"],
            entropy=arrays["entropy"],
            gold_logit=arrays["gold_logit"],
            gold_rank=arrays["gold_rank"],
        )


class CompactEncoding:
    """Frequency-renumbered, block-wise id-sorted tokens; values in steps of 1/16 nat."""

    name = "compact"

    def arrays(self, top_k: int) -> list[ArraySpec]:
        """See `Encoding.arrays`."""
        blocks = -(-top_k // RANK_BLOCK)
        return [
            ArraySpec("codes", "int32", top_k, "pcodec"),
            ArraySpec("gaps", "uint16", top_k, "shuffle-zstd"),
            ArraySpec("block_gaps", "uint16", blocks, "pcodec"),
            ArraySpec("top_logit", "float32", None, "pcodec"),
            ArraySpec("logsumexp_gap", "uint32", None, "pcodec"),
            ArraySpec("entropy", "uint32", None, "pcodec"),
            ArraySpec("gold_gap", "uint32", None, "pcodec"),
            ArraySpec("gold_rank", "int32", None, "pcodec"),
        ]

    def encode(self, rows: TeacherRows, code_of_token: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """See `Encoding.encode`."""
        top = rows.logits[:, 0].astype(np.float64)
        gaps = _quantise("logits", top[:, None] - rows.logits, GAP_STEP, MINUS_INFINITY)
        codes = code_of_token[rows.token_ids]
        block_gaps = gaps[:, ::RANK_BLOCK].copy()  # `gaps` is reordered in place below
        for block in _blocks(gaps.shape[1]):
            order = np.argsort(codes[:, block], axis=1, kind="stable")
            codes[:, block] = np.take_along_axis(codes[:, block], order, axis=1)
            ordered = np.take_along_axis(gaps[:, block], order, axis=1)
            block_top = block_gaps[:, [block.start // RANK_BLOCK]]
            gaps[:, block] = np.where(ordered == MINUS_INFINITY, MINUS_INFINITY, ordered - block_top)
        return {
            "codes": codes,
            "gaps": gaps,
            "block_gaps": block_gaps,
            "top_logit": rows.logits[:, 0],
            "logsumexp_gap": _quantise("logsumexp", rows.logsumexp - top, LOGSUMEXP_STEP, np.uint32(2**32 - 2)),
            "entropy": _quantise("entropy", rows.entropy.astype(np.float64), ENTROPY_STEP, np.uint32(2**32 - 2)),
            "gold_gap": _quantise("gold_logit", top - rows.gold_logit, GOLD_STEP, MINUS_INFINITY_GOLD),
            "gold_rank": rows.gold_rank,
        }

    def decode(self, arrays: Arrays, top_k: int, token_of_code: NDArray[np.int32]) -> TeacherRows:
        """See `Encoding.decode`."""
        codes, gaps = arrays["codes"], arrays["gaps"]
        top = arrays["top_logit"]
        token_ids = np.empty((len(codes), top_k), dtype=np.int32)
        logits = np.empty((len(codes), top_k), dtype=np.float32)
        for block in _blocks(codes.shape[1]):
            if block.start >= top_k:
                break
            # One sort restores ranks: the value decides, equal values by ascending code.
            key = np.sort(gaps[:, block].astype(np.uint64) << np.uint64(32) | codes[:, block].astype(np.uint64), axis=1)
            kept = slice(block.start, min(block.stop, top_k))
            key = key[:, : kept.stop - kept.start]
            token_ids[:, kept] = token_of_code[(key & np.uint64(0xFFFFFFFF)).astype(np.intp)]
            gap = (key >> np.uint64(32)).astype(np.float32)
            block_gap = arrays["block_gaps"][:, [block.start // RANK_BLOCK]].astype(np.float32)
            below = (gap + block_gap) * np.float32(GAP_STEP)
            below[(gap == MINUS_INFINITY) | (block_gap == MINUS_INFINITY)] = np.inf
            logits[:, kept] = top[:, None] - below
        gold_gap = arrays["gold_gap"]
        gold = top - gold_gap * GOLD_STEP
        return TeacherRows(
            token_ids=token_ids,
            logits=logits,
            logsumexp=(top + arrays["logsumexp_gap"] * LOGSUMEXP_STEP).astype(np.float32),
            entropy=(arrays["entropy"] * ENTROPY_STEP).astype(np.float32),
            gold_logit=np.where(gold_gap == MINUS_INFINITY_GOLD, -np.inf, gold).astype(np.float32),
            gold_rank=arrays["gold_rank"],
        )


def _blocks(width: int) -> list[slice]:
    return [slice(start, min(start + RANK_BLOCK, width)) for start in range(0, width, RANK_BLOCK)]


def _quantise(
    name: str, below: NDArray[np.floating[Any]], step: float, infinity: np.unsignedinteger[Any]
) -> NDArray[Any]:
    """Round to steps; +inf becomes the type's marker, a value too large for the type is refused."""
    steps = np.rint(below / step)
    unbounded = np.isposinf(steps)
    largest = int(infinity) - 1
    if (steps[~unbounded] > largest).any():
        worst = float(steps[~unbounded].max() * step)
        raise StoreError(
            f"store.encoding: compact holds {name} up to {largest * step:g} nats from the largest logit, "
            f"got {worst:g}; use exact"
        )
    steps[unbounded] = int(infinity)
    return np.maximum(steps, 0).astype(infinity.dtype)


ENCODINGS: dict[str, Callable[[], Encoding]] = {
    "exact": lambda: PlainEncoding("exact", "float32"),
    "float16": lambda: PlainEncoding("float16", "float16"),
    "compact": CompactEncoding,
}
