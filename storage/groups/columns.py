"""Columns of any length, in files without names in the temporary directory: written once, at their end, read anywhere.

What a store keeps of each token goes through these, so that memory does not grow with the tokens.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from logitbank.errors import StoreError

_BUFFERED = 1 << 16  # bytes


class Column:
    """Values of one type, in the order in which they were added."""

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(prefix="logitbank-", buffering=_BUFFERED)  # noqa: SIM115  # see `close`
        self._count = 0
        self._flushed = True

    def __len__(self) -> int:
        return self._count

    def extend(self, values: ArrayLike) -> None:
        """Add values; StoreError if the temporary directory has no room."""
        data = np.asarray(values, dtype=self.dtype)
        try:
            self._file.write(data.data if data.flags.c_contiguous else data.tobytes())
        except OSError as error:
            raise StoreError(f"the temporary directory (TMPDIR) cannot be written: {error.strerror}") from None
        self._count += len(data)
        self._flushed = False

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The values from `start` on, up to `stop` or the end."""
        self._flush()
        stop = self._count if stop is None else min(stop, self._count)
        values = np.empty(max(0, stop - start), dtype=self.dtype)
        view, at = values.view(np.uint8).data, start * self.dtype.itemsize
        while len(view):
            read = os.preadv(self._file.fileno(), [view], at)
            view, at = view[read:], at + read
        return values

    def read_bytes(self, start: int, stop: int) -> bytes:
        """A few values as the bytes that they are in memory; faster than `read`."""
        self._flush()
        return os.pread(self._file.fileno(), (stop - start) * self.dtype.itemsize, start * self.dtype.itemsize)

    def _flush(self) -> None:
        if not self._flushed:
            self._file.flush()
            self._flushed = True

    def close(self) -> None:
        """Give the room back."""
        self._file.close()
