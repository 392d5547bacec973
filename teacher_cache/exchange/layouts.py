"""What a layout of another program is to an import: which columns it has, and how it reads a row.

Shape letters: L tokens of a sequence, R rows of log-probabilities.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError
from logitbank.teacher_cache.exchange.cells import Cells
from logitbank.teacher_cache.exchange.foreign import NOT_LEARNT, ForeignRow

Predicts = Literal["own", "next"]


@dataclass(frozen=True)
class LayoutOptions:
    """What the user says of the files.

    Attributes:
        files: as they were named.
        logprobs_field: the column of log-probabilities; None for the names that a layout knows.
        row_predicts: whether the row at a position predicts the token at that position (`own`) or the `next` one;
            None to tell from the rows.
        compression: file of DistillKit's compressor; None for the one beside the files.
    """

    files: Sequence[str]
    logprobs_field: str | None = None
    row_predicts: Predicts | None = None
    compression: str | None = None


class RowReader(Protocol):
    """Reads the rows of one layout.

    Attributes:
        tolerance: probability above 1 that rounding may give all entries of an answer token together.
        about: what was found out of the files, for people.
    """

    tolerance: float
    about: str

    def read(self, cells: Cells) -> ForeignRow:
        """One row; TaskError if it does not have this layout."""


class Layout(Protocol):
    """One layout."""

    def columns(self, options: LayoutOptions) -> Collection[str]:
        """All columns that it may read."""

    def recognises(self, columns: Collection[str], options: LayoutOptions) -> bool:
        """Whether rows with these columns have this layout."""

    def reader(self, first: Sequence[Cells], options: LayoutOptions) -> RowReader:
        """A reader of rows like the first ones; TaskError if they do not say how to read them."""


def require(cells: Cells, *names: str) -> None:
    """Raise `TaskError` for a row without some column."""
    if missing := [name for name in names if name not in cells.columns]:
        have = ", ".join(cells.columns) or "none that is known"
        raise TaskError(f"{cells.place}: expected a column {missing[0]}, got {have}")


def optional_text(cells: Cells, column: str) -> str | None:
    """A text, where the row has it."""
    return cells.text(column) if column in cells.columns else None


def learned_positions(cells: Cells, input_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions that the labels of a row say are learned; the first token is not, for nothing predicts it.

    Raises:
        TaskError: another length, or a label that is not the token it stands at.
    """
    labels = cells.vector("labels", "whole")
    if len(labels) != len(input_ids):
        raise TaskError(
            f"{cells.place}, labels: expected {len(input_ids):,} of them, as there are input_ids, got {len(labels):,}"
        )
    wrong = np.flatnonzero((labels != NOT_LEARNT) & (labels != input_ids))
    if len(wrong):
        at = int(wrong[0])
        raise TaskError(
            f"{cells.place}, labels: expected {NOT_LEARNT} or the token at its position ({input_ids[at]} at {at:,}), "
            f"got {labels[at]}"
        )
    positions = np.flatnonzero(labels != NOT_LEARNT)
    return positions[positions > 0]
