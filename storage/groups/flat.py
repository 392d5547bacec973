"""Zarr arrays that are written once, with their group, and read as they are asked for: in chunks, or whole."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.codecs.numcodecs import PCodec

FLAT_CHUNK = 1 << 18  # rows of a chunk
# Each process that opens a store would be told so. We know: docs/store-format.md says what reads pcodec.
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")


def coder(name: str) -> dict[str, Any]:
    """Zarr codecs of a chain; each ends in zstd with a content checksum, which all readers check."""
    if name == "pcodec":
        return {"serializer": PCodec(level=8), "compressors": [ZstdCodec(level=1, checksum=True)]}
    if name == "pcodec-as-is":  # the values are differences already: pcodec need not look for any
        serializer = PCodec(level=8, mode_spec="classic", delta_spec="try_consecutive", delta_encoding_order=0)
        return {"serializer": serializer, "compressors": [ZstdCodec(level=1, checksum=True)]}
    if name == "zstd":
        return {"serializer": BytesCodec(), "compressors": [ZstdCodec(level=12, checksum=True)]}
    if name == "text":  # level 12 saves another 3% of prose, in ten times the time
        return {"serializer": BytesCodec(), "compressors": [ZstdCodec(level=6, checksum=True)]}
    raise ValueError(name)


def create_flat_array(
    group: zarr.Group, name: str, data: NDArray[Any], coder_name: str, *, chunk: int = FLAT_CHUNK
) -> None:
    """Create and fill an array in chunks of so many rows."""
    _create(group, name, data.shape, data.dtype, coder_name, chunk)[:] = data


def create_long_array(
    group: zarr.Group,
    name: str,
    length: int,
    dtype: DTypeLike,
    read: Callable[[int, int], NDArray[Any]],
    coder_name: str,
    written: Callable[[], object],
) -> None:
    """Create an array as `create_flat_array` does, a chunk at a time.

    Args:
        group: in which.
        name: of the array.
        length: of the array.
        dtype: of its values.
        read: gives the values from one position to another.
        coder_name: key of `coder`.
        written: called after each chunk, which may then be taken out of memory.
    """
    array = _create(group, name, (length,), np.dtype(dtype), coder_name, FLAT_CHUNK)
    for start in range(0, length, FLAT_CHUNK):
        stop = min(start + FLAT_CHUNK, length)
        array[start:stop] = read(start, stop)
        written()


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], coder_name: str, chunk: int
) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(shape[0], chunk)), *shape[1:]),
        filters=(),
        fill_value=0,
        config={"write_empty_chunks": True},
        **coder(coder_name),
    )


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """One of a group's arrays."""
    found = group[name]
    assert isinstance(found, zarr.Array), name
    return found


def read_all(array: zarr.Array[Any]) -> NDArray[Any]:
    """A whole array."""
    return np.asarray(array[:])


def starts_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Where runs of these lengths begin that are laid end to end."""
    starts: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts


class ChunkedReader:
    """Slices of a flat array, the latest chunks kept decoded."""

    def __init__(self, array: zarr.Array[Any], keep: int = 64) -> None:
        self._array = array
        self._rows = array.chunks[0]
        self._keep = keep
        self._chunks: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def one(self, position: int) -> int:
        """One value."""
        return int(self._chunk(position // self._rows)[position % self._rows])

    def read(self, start: int, length: int) -> NDArray[Any]:
        """`length` ≥ 1 values from `start` on."""
        chunk, first = divmod(start, self._rows)
        if first + length <= self._rows:
            return self._chunk(chunk)[first : first + length]
        stop, parts = start + length, []
        for chunk in range(start // self._rows, (stop - 1) // self._rows + 1):
            origin = chunk * self._rows
            parts.append(self._chunk(chunk)[max(start - origin, 0) : stop - origin])
        return np.concatenate(parts)

    def _chunk(self, chunk: int) -> NDArray[Any]:
        if chunk not in self._chunks:
            origin = chunk * self._rows
            self._chunks[chunk] = np.asarray(self._array[origin : origin + self._rows])
            if len(self._chunks) > self._keep:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(chunk)
        return self._chunks[chunk]
