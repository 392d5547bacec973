"""How top-K logits become arrays: `exact`, `float16`, `compact`.

An encoding maps `TeacherRows` to named arrays on the answer-token axis and back. `exact` and
`float16` store what the name says, in rank order. `compact` (the default) is lossy inside stated
bounds and about five times smaller than int32 + float16:

- the largest logit is kept as float32; every other value as a multiple of 5/64 nat below it, hence
  within 5/128 nat; the other scalars in steps of 1/512 nat;
- tokens are renumbered by frequency (`codes`), so that common tokens are small numbers;
- inside a block of 16 ranks the codes ascend, and each is stored as its difference from the one
  before. The values follow the same order. The order of ranks inside a block is not stored: the
  values restore it, equal values by ascending code. A block is still a unit of ranks, so the first
  k ranks are the first ceil(k / 16) blocks.

Shape letters: T answer tokens, K ranks, B blocks of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.layout import ArraySpec, rank_blocks
from storage.rows import TeacherRows

Arrays = Mapping[str, NDArray[Any]]

GAP_STEP = 5 / 64  # nats between stored values
SCALAR_STEP = 1 / 512  # nats between stored scalars
INFINITY = 2**16 - 1  # marks -inf among gaps
INFINITY_GOLD = 2**32 - 1


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
    """Frequency-renumbered, block-wise id-sorted tokens; values in steps of 5/64 nat."""

    name = "compact"

    def arrays(self, top_k: int) -> list[ArraySpec]:
        """See `Encoding.arrays`."""
        return [
            ArraySpec("codes", "uint32", top_k, "pcodec-as-is"),
            ArraySpec("gaps", "uint16", top_k, "pcodec-as-is"),
            ArraySpec("block_gaps", "uint16", len(rank_blocks(top_k)), "pcodec-as-is"),
            ArraySpec("top_logit", "float32", None, "pcodec"),
            ArraySpec("logsumexp_gap", "uint32", None, "pcodec"),
            ArraySpec("entropy", "uint32", None, "pcodec"),
            ArraySpec("gold_gap", "uint32", None, "pcodec"),
            ArraySpec("gold_rank", "int32", None, "pcodec"),
        ]

    def encode(self, rows: TeacherRows, code_of_token: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """See `Encoding.encode`."""
        tokens, top_k = rows.token_ids.shape
        top = rows.logits[:, 0].astype(np.float64)
        below = np.rint((top[:, None] - rows.logits) / GAP_STEP)  # steps, +inf where the logit is -inf
        codes = np.empty((tokens, top_k), dtype=np.uint32)
        gaps = np.empty((tokens, top_k), dtype=np.uint16)
        block_gaps = np.empty((tokens, len(rank_blocks(top_k))), dtype=np.uint16)
        before = np.zeros(tokens)  # the last value of the block before
        for number, block in enumerate(rank_blocks(top_k)):
            block_codes = code_of_token[rows.token_ids[:, block]]
            order = np.argsort(block_codes, axis=1, kind="stable")
            sorted_codes = np.take_along_axis(block_codes, order, axis=1)
            codes[:, block] = np.diff(sorted_codes, axis=1, prepend=0)
            first, last = below[:, block.start], below[:, block.stop - 1]
            with np.errstate(invalid="ignore"):  # inf - inf is replaced by the marker
                block_gaps[:, number] = _steps("logits", first - before, np.isposinf(first), INFINITY, GAP_STEP)
                relative = np.take_along_axis(below[:, block], order, axis=1)
                gaps[:, block] = _steps("logits", relative - first[:, None], np.isposinf(relative), INFINITY, GAP_STEP)
            before = last
        gold_below = (top - rows.gold_logit) / SCALAR_STEP
        scalars = {
            "logsumexp_gap": (rows.logsumexp - top) / SCALAR_STEP,
            "entropy": rows.entropy.astype(np.float64) / SCALAR_STEP,
            "gold_gap": gold_below,
        }
        return {
            "codes": codes,
            "gaps": gaps,
            "block_gaps": block_gaps,
            "top_logit": rows.logits[:, 0],
            **{
                name: _steps(name, np.rint(value), np.isposinf(value), INFINITY_GOLD, SCALAR_STEP).astype(np.uint32)
                for name, value in scalars.items()
            },
            "gold_rank": rows.gold_rank,
        }

    def decode(self, arrays: Arrays, top_k: int, token_of_code: NDArray[np.int32]) -> TeacherRows:
        """See `Encoding.decode`."""
        codes, gaps = arrays["codes"], arrays["gaps"]
        top = arrays["top_logit"].astype(np.float64)
        token_ids = np.empty((len(codes), top_k), dtype=np.int32)
        logits = np.empty((len(codes), top_k), dtype=np.float32)
        before = np.zeros(len(codes))
        for number, block in enumerate(rank_blocks(codes.shape[1])):
            if block.start >= top_k:
                break
            # One sort restores ranks: the value decides, equal values by ascending code.
            code = np.cumsum(codes[:, block], axis=1, dtype=np.uint64)
            key = np.sort(gaps[:, block].astype(np.uint64) << np.uint64(32) | code, axis=1)
            gap = (key >> np.uint64(32)).astype(np.float64)
            gap[gap == INFINITY] = np.inf
            block_gap = arrays["block_gaps"][:, number].astype(np.float64)
            block_gap[block_gap == INFINITY] = np.inf
            below = gap + (before + block_gap)[:, None]
            before = below[:, -1]
            kept = slice(block.start, min(block.stop, top_k))
            width = kept.stop - kept.start
            token_ids[:, kept] = token_of_code[(key[:, :width] & np.uint64(0xFFFFFFFF)).astype(np.intp)]
            logits[:, kept] = top[:, None] - below[:, :width] * GAP_STEP
        gold_gap = arrays["gold_gap"]
        gold = top - gold_gap * SCALAR_STEP
        return TeacherRows(
            token_ids=token_ids,
            logits=logits,
            logsumexp=(top + arrays["logsumexp_gap"] * SCALAR_STEP).astype(np.float32),
            entropy=(arrays["entropy"] * SCALAR_STEP).astype(np.float32),
            gold_logit=np.where(gold_gap == INFINITY_GOLD, -np.inf, gold).astype(np.float32),
            gold_rank=arrays["gold_rank"],
        )


def _steps(
    name: str, steps: NDArray[np.floating[Any]], infinite: NDArray[np.bool_], marker: int, step: float
) -> NDArray[np.int64]:
    """Whole steps with the marker where infinite; a distance too large for its type is refused."""
    if (steps[~infinite] > marker - 1).any():
        worst = float(steps[~infinite].max() * step)
        raise StoreError(
            f"store.encoding: compact holds {name} up to {(marker - 1) * step:g} nats apart, got {worst:g}; use exact"
        )
    return np.where(infinite, marker, np.maximum(np.where(infinite, 0, steps), 0)).astype(np.int64)


ENCODINGS: dict[str, Callable[[], Encoding]] = {
    "exact": lambda: PlainEncoding("exact", "float32"),
    "float16": lambda: PlainEncoding("float16", "float16"),
    "compact": CompactEncoding,
}
