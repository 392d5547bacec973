"""Decoding one object of an array on the answer-token axis without Zarr, whose cost per call would dominate.

An object is a Zarr shard: inner chunks of `chunk_tokens` rows, each coded by the array's chain, then an index
of (offset, bytes) per chunk and its CRC-32C. What Zarr itself reads is the same; a test compares the two.
"""

from __future__ import annotations

import numpy as np
from numcodecs import PCodec, Zstd
from numpy.typing import NDArray

_INDEX_ENTRY = np.dtype([("offset", "<u8"), ("bytes", "<u8")])
_CRC_BYTES = 4


def decode_object(
    data: bytes, dtype: str, columns: int, *, rows: int, shard_tokens: int, chunk_tokens: int
) -> NDArray[np.generic]:
    """The first `rows` of an object's rows, (rows, columns).

    Args:
        data: the whole object, verified by its manifest.
        dtype: NumPy dtype name.
        columns: columns of the object.
        rows: how many rows are in use.
        shard_tokens: rows of the object.
        chunk_tokens: rows of an inner chunk.

    Raises:
        ValueError: a chunk that does not hold what it should. The codecs have errors of their own.
    """
    chunks = shard_tokens // chunk_tokens
    index = np.frombuffer(data[-chunks * _INDEX_ENTRY.itemsize - _CRC_BYTES : -_CRC_BYTES], _INDEX_ENTRY)
    used = -(-rows // chunk_tokens)
    out = np.empty((used, chunk_tokens, columns), dtype=dtype)
    zstd, pcodec = Zstd(), PCodec()
    for number in range(used):
        offset = int(index["offset"][number])
        coded = zstd.decode(data[offset : offset + int(index["bytes"][number])])
        values = pcodec.decode(coded)
        if values.dtype != out.dtype or values.size != out[number].size:
            raise ValueError(f"expected {out[number].size} {dtype}, got {values.size} {values.dtype}")
        out[number] = values.reshape(chunk_tokens, columns)
    return out.reshape(-1, columns)[:rows]
