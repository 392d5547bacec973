"""Where everything is in a store: the shard plan and the Zarr arrays. docs/store-format.md has it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.storage.groups import TOKENS, coder

FORMAT = TOKENS
FORMAT_VERSION = 4
READABLE_VERSIONS = (3, FORMAT_VERSION)
RANK_BLOCK = 16  # ranks per object: the first k ranks cost the bytes of ceil(k / 16) blocks


@dataclass(frozen=True)
class ShardPlan:
    """Which rows of the answer-token axis belong to which example.

    No example straddles a shard, so a shard is one unit of work. The rows left over at a shard's
    end stay unused.

    Attributes:
        shard_tokens: rows of the answer-token axis per shard.
        answer_start: (N,) int64, first row of each example.
        answer_length: (N,) int32, rows of each example.
        first_example: (shards + 1,) int64; shard s holds examples first_example[s] to [s + 1].
    """

    shard_tokens: int
    answer_start: NDArray[np.int64]
    answer_length: NDArray[np.int32]
    first_example: NDArray[np.int64]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.first_example) - 1

    def examples_of(self, shard: int) -> range:
        """The examples of one shard, which are consecutive."""
        return range(int(self.first_example[shard]), int(self.first_example[shard + 1]))

    def used_rows(self, shard: int) -> int:
        """Rows of the shard that hold answer tokens; they come first."""
        examples = self.examples_of(shard)
        return int(self.answer_length[examples.start : examples.stop].sum())

    def shard_of(self, example: int) -> int:
        """The shard that holds an example."""
        return int(self.answer_start[example] // self.shard_tokens)


def plan_shards(
    answer_lengths: Sequence[int] | NDArray[np.integer], shard_tokens: int, chunk_tokens: int
) -> tuple[ShardPlan, int]:
    """Lay examples out in their given order, opening a new shard where the next one does not fit.

    Returns:
        The plan and the chunk length. Both shrink for a store smaller than one shard; shards grow, by whole chunks,
        to hold the longest answer.

    Raises:
        StoreError: no examples, an empty answer, or shards that are not whole chunks.
    """
    lengths = np.asarray(answer_lengths, dtype=np.int64)
    if len(lengths) == 0:
        raise StoreError("examples: expected at least one, got none")
    if lengths.min() < 1:
        raise StoreError(f"answer length: expected at least one token, got {lengths.min()}")
    chunk_tokens = min(chunk_tokens, shard_tokens)
    total = int(lengths.sum())
    if total <= shard_tokens:
        chunk_tokens = min(chunk_tokens, total)
        shard_tokens = -(-total // chunk_tokens) * chunk_tokens
    if shard_tokens % chunk_tokens:
        raise StoreError(
            f"store.shard_tokens: expected a multiple of store.chunk_tokens ({chunk_tokens}), got {shard_tokens}"
        )
    shard_tokens = max(shard_tokens, -(-int(lengths.max()) // chunk_tokens) * chunk_tokens)
    ends = np.cumsum(lengths)
    starts = np.empty(len(lengths), dtype=np.int64)
    first_example = [0]
    while first_example[-1] < len(lengths):
        first = first_example[-1]
        before = ends[first] - lengths[first]
        stop = int(np.searchsorted(ends, before + shard_tokens, side="right"))
        starts[first:stop] = (len(first_example) - 1) * shard_tokens + ends[first:stop] - lengths[first:stop] - before
        first_example.append(stop)
    plan = ShardPlan(shard_tokens, starts, lengths.astype(np.int32), np.asarray(first_example, dtype=np.int64))
    return plan, chunk_tokens


@dataclass(frozen=True)
class ArraySpec:
    """One array on the answer-token axis.

    Attributes:
        name: its name below the view's group.
        dtype: NumPy dtype name.
        width: columns, or None for one value per answer token.
        coder: key of `groups.coder`.
        per_block: its columns are blocks of ranks, not ranks.
        whole: its columns are not ranks: always read completely.
    """

    name: str
    dtype: str
    width: int | None
    coder: str
    per_block: bool = False
    whole: bool = False

    def columns_for(self, top_k: int, stored: int) -> int | None:
        """How many columns the first `top_k` of the `stored` ranks need: whole blocks of them."""
        if self.width is None or self.whole:
            return self.width
        blocks = -(-top_k // RANK_BLOCK)
        return blocks if self.per_block else min(blocks * RANK_BLOCK, stored)


def rank_blocks(width: int) -> list[slice]:
    """The columns of each block of ranks; the last block may be narrower."""
    return [slice(start, min(start + RANK_BLOCK, width)) for start in range(0, width, RANK_BLOCK)]


def create_token_array(group: zarr.Group, spec: ArraySpec, rows: int, shard_tokens: int, chunk_tokens: int) -> None:
    """Create an array on the answer-token axis: one object per shard and block of ranks."""
    dtype = np.dtype(spec.dtype)
    if spec.width is None:
        shape: tuple[int, ...] = (rows,)
        shards: tuple[int, ...] = (shard_tokens,)
        chunks: tuple[int, ...] = (chunk_tokens,)
    else:
        block = min(RANK_BLOCK, spec.width)
        shape, shards, chunks = (rows, spec.width), (shard_tokens, block), (chunk_tokens, block)
    group.create_array(
        spec.name,
        shape=shape,
        dtype=dtype,
        shards=shards,
        chunks=chunks,
        filters=(),
        fill_value=0,
        config={"write_empty_chunks": True},
        **coder(spec.coder),
    )
