"""Which rows of a label store belong to which shard: a shard holds rows of one fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError, counted
from logitbank.storage.groups import LABELS

FORMAT = LABELS
FORMAT_VERSION = 1


@dataclass(frozen=True)
class FoldPlan:
    """Where training rows are: those of a fold end to end, and every fold begins with a shard of its own.

    Attributes:
        shard_rows: rows of a shard; those that the last shard of a fold leaves over stay unused.
        first: (shards + 1,) int64; shard s holds the training rows first[s] to first[s + 1].
        fold: (shards,) int8, the fold of each shard.
    """

    shard_rows: int
    first: NDArray[np.int64]
    fold: NDArray[np.int8]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.fold)

    def rows_of(self, shard: int) -> range:
        """The training rows of a shard."""
        return range(int(self.first[shard]), int(self.first[shard + 1]))

    def shards_of(self, fold: int) -> list[int]:
        """The shards of a fold."""
        return [int(shard) for shard in np.flatnonzero(self.fold == fold)]

    def rows_of_fold(self, fold: int) -> range:
        """The training rows of a fold."""
        shards = self.shards_of(fold)
        return range(int(self.first[shards[0]]), int(self.first[shards[-1] + 1]))

    def places(self) -> NDArray[np.int64]:
        """(N,) where each training row is on the axis of logits."""
        lengths = np.diff(self.first)
        return np.arange(int(self.first[-1])) + np.repeat(
            np.arange(self.shards) * self.shard_rows - self.first[:-1], lengths
        )


def plan_folds(fold: NDArray[np.int8], folds: int, shard_rows: int) -> FoldPlan:
    """Cut rows, which are in the order of their folds, into shards.

    Args:
        fold: (N,) the fold of each training row.
        folds: how many there are.
        shard_rows: rows of a shard; fewer where the largest fold has fewer.

    Raises:
        StoreError: a fold without rows, one that does not exist, or rows that are not in the order of their folds.
    """
    if len(fold) == 0:
        raise StoreError("train: expected at least one row, got none")
    if fold.min() < 0 or fold.max() >= folds or (np.diff(fold) < 0).any():
        raise StoreError(f"folds: expected rows sorted by fold, 0 to {folds - 1}")
    sizes = np.bincount(fold, minlength=folds)
    if (sizes == 0).any():
        raise StoreError(
            f"folds: {counted(len(fold), 'row')} leave fold {int(np.argmin(sizes))} of {folds} empty; use fewer folds"
        )
    shard_rows = min(shard_rows, int(sizes.max()))
    begins = np.cumsum(sizes) - sizes
    first: list[int] = []
    of: list[int] = []
    for number, (begin, size) in enumerate(zip(begins.tolist(), sizes.tolist(), strict=True)):
        starts = range(begin, begin + size, shard_rows)
        first += starts
        of += [number] * len(starts)
    return FoldPlan(shard_rows, np.array([*first, len(fold)], np.int64), np.array(of, np.int8))
