"""Random subsets that depend on a seed alone: not on process, platform or library versions."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
from numpy.typing import NDArray

_SLACK = 1024  # candidates that are kept beside twice the limit


def rank(key: str) -> int:
    """The position of a key in the order that its hash makes, a number below 2⁶⁴."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def random_order(count: int, key: str) -> NDArray[np.int64]:
    """(count,) a permutation of the numbers below `count`, by the rank of each."""
    ranks = np.fromiter((rank(f"{key}/{index}") for index in range(count)), np.uint64, count)
    return np.argsort(ranks, kind="stable").astype(np.int64)


class Drawn:
    """Those of a stream whose ranks are the lowest, the earlier first among equals.

    At most twice as many as are wanted are remembered, 16 bytes each.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ranks, self._positions = array("Q"), array("q")
        self._below = 1 << 64  # what is not below this can no longer be among the lowest

    def wants(self, candidate: int) -> bool:
        """Whether one of this rank may be among the lowest."""
        return self._limit > 0 and candidate < self._below

    def add(self, candidate: int, position: int) -> None:
        """Remember one that is wanted."""
        self._ranks.append(candidate)
        self._positions.append(position)
        if len(self._ranks) > 2 * self._limit + _SLACK:
            ranks, lowest = np.array(self._ranks), np.sort(self._lowest())  # in the order in which they came
            self._positions = array("q", np.array(self._positions)[lowest].tobytes())
            self._ranks = array("Q", ranks[lowest].tobytes())
            self._below = int(ranks[lowest].max())

    def positions(self) -> NDArray[np.int64]:
        """Positions of the lowest, by rank."""
        found: NDArray[np.int64] = np.array(self._positions, dtype=np.int64)[self._lowest()]
        return found

    def _lowest(self) -> NDArray[np.int64]:
        return np.argsort(np.array(self._ranks, dtype=np.uint64), kind="stable")[: self._limit].astype(np.int64)
