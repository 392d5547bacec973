"""Where everything lies in a store: the shard plan and the Zarr arrays. docs/store-format.md has it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.codecs.numcodecs import PCodec

from logitbank.errors import StoreError

FORMAT = "logitbank-store"
FORMAT_VERSION = 4
READABLE_VERSIONS = (3, FORMAT_VERSION)
RANK_BLOCK = 16  # ranks per object: the first k ranks cost the bytes of ceil(k / 16) blocks
FLAT_CHUNK = 1 << 18  # elements per chunk of arrays that are not on the answer-token axis


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


def plan_shards(answer_lengths: Sequence[int], shard_tokens: int, chunk_tokens: int) -> tuple[ShardPlan, int]:
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
        coder: key of `coder`.
        per_block: its columns are blocks of ranks, not ranks.
        whole: its columns are no ranks at all: always read completely.
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


def coder(name: str) -> dict[str, Any]:
    """Zarr codecs of a chain; each ends in zstd with a content checksum, which all readers check."""
    if name == "pcodec":
        return {"serializer": PCodec(level=8), "compressors": [ZstdCodec(level=1, checksum=True)]}
    if name == "pcodec-as-is":  # the values are differences already: pcodec need not look for any
        serializer = PCodec(level=8, mode_spec="classic", delta_spec="try_consecutive", delta_encoding_order=0)
        return {"serializer": serializer, "compressors": [ZstdCodec(level=1, checksum=True)]}
    if name == "zstd":
        return {"serializer": BytesCodec(), "compressors": [ZstdCodec(level=12, checksum=True)]}
    raise ValueError(name)


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


def create_flat_array(group: zarr.Group, name: str, data: NDArray[Any], coder_name: str) -> None:
    """Create and fill an array in chunks of `FLAT_CHUNK` rows."""
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(max(1, min(len(data), FLAT_CHUNK)), *data.shape[1:]),
        filters=(),
        fill_value=0,
        config={"write_empty_chunks": True},
        **coder(coder_name),
    )
    array[:] = data


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """One of a group's arrays."""
    found = group[name]
    assert isinstance(found, zarr.Array), name
    return found
