"""Decoding one object of an array on the answer-token axis without Zarr, whose cost per call would dominate.

An object is a Zarr shard: inner chunks of `chunk_tokens` rows, each coded by the array's chain, then an index
of (offset, bytes) per chunk and its CRC-32C. What Zarr itself reads is the same; a test compares the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray
from pcodec import standalone

_INDEX_ENTRY = np.dtype([("offset", "<u8"), ("bytes", "<u8")])
_CRC_BYTES = 4


def decode_object(data: bytes, out: NDArray[Any], *, first: int = 0, shard_tokens: int, chunk_tokens: int) -> None:
    """Decode rows of an object.

    Args:
        data: the whole object, verified by its manifest.
        out: (rows, columns) contiguous, filled here: the rows that are wanted, all columns of the object.
        first: the first of these rows, which is the first of an inner chunk.
        shard_tokens: rows of the object.
        chunk_tokens: rows of an inner chunk.

    Raises:
        ValueError: a chunk that holds too little. The codecs have errors of their own.
    """
    chunks = shard_tokens // chunk_tokens
    index = np.frombuffer(data[-chunks * _INDEX_ENTRY.itemsize - _CRC_BYTES : -_CRC_BYTES], _INDEX_ENTRY)
    for start in range(0, len(out), chunk_tokens):
        offset, size = index[(first + start) // chunk_tokens].tolist()
        coded = Zstd().decode(data[offset : offset + size])
        wanted = out[start : start + chunk_tokens].reshape(-1)
        found = standalone.simple_decompress_into(coded, wanted).n_processed
        if found != wanted.size:
            raise ValueError(f"expected {wanted.size} values, got {found}")
