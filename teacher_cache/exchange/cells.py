"""Rows of token ids and log-probabilities as arrays, from Parquet and JSON alike, a batch in memory at a time.

Shape letters: L tokens of a sequence, R rows of log-probabilities, E entries of all of them together.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from logitbank.errors import TaskError
from logitbank.tasks.files import ParquetReader, Row

_BATCH_BYTES = 8 << 20  # of a Parquet file, as it counts them itself, that are arrays at a time
_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20  # of each column's stream
Kind = Literal["whole", "real"]
_MEANT: Mapping[Kind, str] = {"whole": "whole numbers", "real": "numbers"}


@dataclass(frozen=True)
class Ragged:
    """Runs of numbers, end to end.

    Attributes:
        values: (E,) the numbers.
        offsets: (R + 1,) int64, where each run begins, and the end of the last.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(R,) numbers of each run."""
        return np.diff(self.offsets)

    def take(self, runs: NDArray[np.int64]) -> Ragged:
        """Some runs, in the given order."""
        lengths = self.lengths[runs]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        first = np.repeat(self.offsets[runs] - offsets[:-1], lengths)
        return Ragged(self.values[first + np.arange(offsets[-1])], offsets)

    def table(self, fill: float) -> NDArray[Any]:
        """(R, W) the runs side by side, `fill` after the shorter ones."""
        lengths = self.lengths
        width = int(lengths.max(initial=0))
        if (lengths == width).all():
            return self.values.reshape(len(self), width)
        wide = np.full((len(self), width), fill, dtype=self.values.dtype)
        wide[np.arange(width) < lengths[:, None]] = self.values
        return wide


class Cells:
    """The cells of one row, by column; a cell that is null is missing.

    Attributes:
        place: where the row stands, for messages.
        columns: names of the cells.
    """

    def __init__(self, place: str, batch: _Batch, row: int, columns: tuple[str, ...]) -> None:
        self.place = place
        self.columns = columns
        self._batch = batch
        self._row = row

    def vector(self, column: str, kind: Kind) -> NDArray[Any]:
        """A list of numbers, (L,) int64 or float64; TaskError if the cell is none."""
        values, (offsets,) = self._numbers(column, kind, 1)
        return values[slice(*offsets)]

    def matrix(self, column: str, kind: Kind) -> Ragged:
        """A list of lists of numbers; null instead of an inner list has no numbers. TaskError if it is none."""
        values, (outer, inner) = self._numbers(column, kind, 2)
        offsets = inner[outer[0] : outer[1] + 1]
        return Ragged(values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def entries(self, column: str) -> dict[str, Ragged] | None:
        """A list of lists of objects, by key: texts and numbers as they are; None if the innermost are not objects.

        Raises:
            TaskError: the cell is not a list of lists.
        """
        leaf, (outer, inner) = self._nested(column, 2, "objects")
        if not pa.types.is_struct(leaf.type):
            return None
        offsets = inner[outer[0] : outer[1] + 1]
        part = leaf.slice(offsets[0], offsets[-1] - offsets[0])
        names = [part.type.field(number).name for number in range(part.type.num_fields)]
        return {
            name: Ragged(values.to_numpy(zero_copy_only=False), offsets - offsets[0])
            for name, values in zip(names, part.flatten(), strict=True)
        }

    def text(self, column: str) -> str:
        """A text; TaskError if it is none."""
        value = self._batch.column(column)[self._row].as_py()
        if not isinstance(value, str):
            raise TaskError(f"{self.place}, {column}: expected text, got {type(value).__name__}")
        return value

    def _nested(self, column: str, depth: int, what: str) -> tuple[pa.Array, list[NDArray[np.int64]]]:
        """The innermost values of a whole column, and how this row leads to them, list by list."""
        found = self._batch.nested(column, depth)
        if found is None:
            shape = "list of lists" if depth == 2 else "list"
            raise TaskError(
                f"{self.place}, {column}: expected a {shape} of {what}, got {self._batch.column(column).type}"
            )
        leaf, levels = found
        return leaf, [levels[0][self._row : self._row + 2], *levels[1:]]

    def _numbers(self, column: str, kind: Kind, depth: int) -> tuple[NDArray[Any], list[NDArray[np.int64]]]:
        leaf, offsets = self._nested(column, depth, _MEANT[kind])
        fits = pa.types.is_integer(leaf.type) or (kind == "real" and pa.types.is_floating(leaf.type))
        if not fits and not pa.types.is_null(leaf.type):
            raise TaskError(f"{self.place}, {column}: expected {_MEANT[kind]}, got {leaf.type}")
        if kind == "whole" and leaf.null_count:
            raise TaskError(f"{self.place}, {column}: expected whole numbers, got null among them")
        return self._batch.numbers(column, leaf, kind), offsets


class _Batch:
    """Columns of some rows; what was worked out of one serves all of its rows."""

    def __init__(self, columns: Mapping[str, pa.Array]) -> None:
        self._columns = columns
        self._nested: dict[tuple[str, int], tuple[pa.Array, list[NDArray[np.int64]]] | None] = {}
        self._numbers: dict[tuple[str, Kind], NDArray[Any]] = {}

    def column(self, name: str) -> pa.Array:
        return self._columns[name]

    def nested(self, name: str, depth: int) -> tuple[pa.Array, list[NDArray[np.int64]]] | None:
        if (name, depth) not in self._nested:
            self._nested[name, depth] = _unnested(self._columns[name], depth)
        return self._nested[name, depth]

    def numbers(self, name: str, leaf: pa.Array, kind: Kind) -> NDArray[Any]:
        if (name, kind) not in self._numbers:
            values = leaf.to_numpy(zero_copy_only=False)
            self._numbers[name, kind] = values.astype(np.int64 if kind == "whole" else np.float64, copy=False)
        return self._numbers[name, kind]


class _ParquetCells(Mapping[str, Any]):
    """The columns of a batch, as the values of one of its rows."""

    def __init__(self, batch: _Batch, row: int, columns: tuple[str, ...]) -> None:
        self.batch, self.row, self.columns = batch, row, columns

    def __getitem__(self, name: str) -> Any:
        return self.batch.column(name)[self.row].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def cells_of(row: Row, wanted: Collection[str]) -> Cells:
    """The cells of a row that `parquet_reader` gave, or those that are wanted of one of JSON.

    Raises:
        TaskError: lists that mix numbers with something else.
    """
    values = row.values
    if isinstance(values, _ParquetCells):
        return Cells(row.place, values.batch, values.row, values.columns)
    columns = {}
    for name in wanted:
        if (value := values.get(name)) is not None:
            try:
                columns[name] = pa.array([value])
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise TaskError(f"{row.place}, {name}: expected values of one kind; {error}") from None
    return Cells(row.place, _Batch(columns), 0, tuple(columns))


def parquet_reader(wanted: Collection[str]) -> ParquetReader:
    """Reads the rows of a Parquet file in small batches of its columns, those that are wanted alone."""

    def read(name: str, opened: io.BufferedReader[Any]) -> Iterator[Row]:
        file = pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        columns = [column for column in file.schema_arrow.names if column in wanted]
        number = 0
        for group in range(file.num_row_groups):  # over all of them at once, it reads ahead without bound
            about = file.metadata.row_group(group)
            size = max(1, about.total_byte_size // max(1, about.num_rows))
            rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // size))
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False):
                shared = _Batch(dict(zip(batch.schema.names, batch.columns, strict=True)))
                filled = {column: batch.column(column).is_valid().to_numpy(zero_copy_only=False) for column in columns}
                for row in range(batch.num_rows):
                    number += 1
                    present = tuple(column for column in columns if filled[column][row])
                    yield Row(_ParquetCells(shared, row, present), name, number, "row")

    return read


def _unnested(column: pa.Array, depth: int) -> tuple[pa.Array, list[NDArray[np.int64]]] | None:
    """The innermost values of lists in lists, and the offsets of each level; None if it is not such a column."""
    levels = []
    for _ in range(depth):
        if pa.types.is_null(column.type):  # empty lists, of which JSON does not say what they are lists of
            levels.append(np.zeros(len(column) + 1, np.int64))
            column = pa.nulls(0)
            continue
        if not (
            pa.types.is_list(column.type)
            or pa.types.is_large_list(column.type)
            or pa.types.is_fixed_size_list(column.type)
        ):
            return None
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        levels.append(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
        column = column.flatten()  # leaves out what follows null
    return column, levels
