"""Which comparisons form an optimizer step, and in which order their answers are shown.

Both are pure functions of (seed, position): a step's comparisons are the same at any world size, accumulation, and
after a resume.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Visit(NamedTuple):
    """A training row, by its position, and whether its answers are exchanged this time."""

    row: int
    swapped: bool


class PairOrder:
    """The endless stream of training rows: a fresh permutation every epoch.

    Where a row's answers are swapped, they are in every second epoch; a coin of its own says whether it begins so.
    """

    def __init__(self, swaps_N: NDArray[np.bool_], batch_size: int, seed: int) -> None:
        """Args: `swaps_N` says which rows are shown in both orders, `batch_size` is that of an optimizer step."""
        self._swaps_N = swaps_N
        self._batch_size = batch_size
        self._seed = seed
        self._coin_N = np.random.default_rng([seed, 0]).integers(0, 2, len(swaps_N))
        self._permutation: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self._swaps_N)

    def epochs_in(self, steps: int) -> float:
        """How often so many steps see each row."""
        return steps * self._batch_size / len(self)

    def step(self, step: int) -> list[Visit]:
        """The rows of one optimizer step, counted from 0."""
        return [self._visit(position) for position in range(step * self._batch_size, (step + 1) * self._batch_size)]

    def _visit(self, position: int) -> Visit:
        epoch, index = divmod(position, len(self))
        if self._permutation[0] != epoch:
            drawn = np.random.default_rng([self._seed, 1, epoch]).permutation(len(self))
            self._permutation = (epoch, drawn)
        row = int(self._permutation[1][index])
        return Visit(row, bool(self._swaps_N[row] and (self._coin_N[row] + epoch) % 2))
