"""The names of examples, as a store keeps them: one text, of which a name is decoded when it is asked for.

Millions of Python strings would take more memory than all other columns together.

Shape letters: N names, B bytes of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError

BLOCK = 1 << 16  # names hashed or decoded at a time
LINE_FEED = 10
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no power of it is 0


def join_names(names: Sequence[str]) -> NDArray[np.uint8]:
    """(B,) the names as `ExampleIds.joined` reads them; StoreError for one that repeats or holds a line break."""
    seen: set[str] = set()
    for name in names:
        if "\n" in name or name in seen:
            raise StoreError(f"example_id: expected unique ids without line breaks, got {name!r}")
        seen.add(name)
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


class ExampleIds(Sequence[str]):
    """N names, in the order of a table. A name may come several times in a view's own table."""

    def __init__(self, text: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int32]) -> None:
        """Name i is the UTF-8 text[start[i] : start[i] + length[i]], followed by a line feed."""
        self._text = text
        self._start = start
        self._length = length

    @classmethod
    def joined(cls, text: NDArray[np.uint8], count: int) -> ExampleIds:
        """`count` names that line feeds join."""
        ended = np.append(text, np.uint8(LINE_FEED))
        end = np.flatnonzero(ended == LINE_FEED)[:count]
        start = np.concatenate([np.zeros(min(1, count), np.int64), end[:-1] + 1])
        return cls(ended, start, (end - start).astype(np.int32))

    def take(self, positions: NDArray[np.int64]) -> ExampleIds:
        """The names at some positions; the text is shared."""
        return ExampleIds(self._text, self._start[positions], self._length[positions])

    def __len__(self) -> int:
        return len(self._start)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        start = int(self._start[position])
        return self._text[start : start + int(self._length[position])].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for position in range(len(self)):
            yield self[position]

    def positions_of(self, name: str) -> NDArray[np.int64]:
        """The positions of a name, ascending; empty if it does not occur. The first call indexes all names."""
        hashes, order = self._by_hash
        wanted = np.frombuffer(name.encode() + b"\n", dtype=np.uint8)
        value = _hashes(wanted, np.zeros(1, np.int64), np.array([len(wanted) - 1]))[0]
        first, stop = np.searchsorted(hashes, value, side="left"), np.searchsorted(hashes, value, side="right")
        return np.array([i for i in order[first:stop].tolist() if self[i] == name], dtype=np.int64)

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes in ascending order, and the positions of their names."""
        hashes = np.empty(len(self), dtype=np.uint64)
        for first in range(0, len(self), BLOCK):
            block = slice(first, first + BLOCK)
            hashes[block] = _hashes(self._text, self._start[block], self._length[block])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order


def _hashes(text: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A polynomial of each name's bytes, its line feed included, modulo 2⁶⁴."""
    whole = length.astype(np.int64) + 1
    first = np.cumsum(whole) - whole
    within = np.arange(int(whole.sum())) - np.repeat(first, whole)
    powers = np.cumprod(np.full(int(whole.max()), MULTIPLIER, dtype=np.uint64))
    terms = (text[within + np.repeat(start, whole)] + np.uint64(1)) * powers[within]
    hashes: NDArray[np.uint64] = np.add.reduceat(terms, first)
    return hashes
