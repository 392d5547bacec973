"""The examples of a store while it is planned: columns on disk, written into the store once all are known.

Shape letters: N examples, T rows of the answer-token axis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import zarr
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.sequences import AnsweredSequence
from logitbank.storage.groups import Column, create_long_array, starts_of
from logitbank.storage.teacher_store.examples import ExampleRecord
from logitbank.storage.teacher_store.views import add_sequence


class SequenceColumns:
    """The tokens of sequences, in the order in which they are added."""

    def __init__(self) -> None:
        self.context_ids, self.answer_ids = Column(np.int32), Column(np.int32)
        self.context_length, self.answer_length = Column(np.int32), Column(np.int32)
        self.span_count, self.span_position, self.span_length = Column(np.int32), Column(np.int32), Column(np.int32)

    def __len__(self) -> int:
        return len(self.answer_length)

    def add_sequence(self, sequence: AnsweredSequence) -> None:
        """Keep a sequence."""
        answer = sequence.answer_mask
        answer_ids = sequence.ids[answer]
        self.answer_ids.extend(answer_ids)
        self.context_ids.extend(sequence.ids[~answer])
        self.answer_length.extend([len(answer_ids)])
        self.context_length.extend([len(answer) - len(answer_ids)])
        spans = np.asarray(sequence.spans, dtype=np.int32)
        self.span_count.extend([len(spans)])
        self.span_position.extend(spans[:, 0])
        self.span_length.extend(spans[:, 1])

    def close(self) -> None:
        """Give the room back."""
        for column in vars(self).values():
            if isinstance(column, Column):
                column.close()


class ExampleColumns(SequenceColumns):
    """Examples, in the order in which they are added.

    Attributes:
        languages: of the examples, as they first came.
    """

    def __init__(self, records: Iterable[ExampleRecord] = ()) -> None:
        super().__init__()
        self.names, self.name_hashes = Column(np.uint8), Column(np.uint64)
        self.task, self.language = Column(np.uint16), Column(np.uint16)
        self.languages: list[str] = []
        self._tasks: list[str] = []
        self._first: dict[tuple[str, str], str] = {}  # the first example of a task and language
        self._digest = hashlib.sha256()
        for record in records:
            self.add(record)

    @property
    def hash(self) -> str:
        """SHA-256 over all that the store keeps of the examples."""
        return self._digest.hexdigest()

    def add(self, record: ExampleRecord) -> None:
        """Keep an example; StoreError for an id with a line break."""
        if "\n" in record.example_id:
            raise _no_name(record.example_id)
        name = record.example_id.encode()
        self._digest.update(b"%b\n%b\n%b\n" % (name, record.task.encode(), record.language.encode()))
        add_sequence(self._digest, record.sequence)
        self.names.extend(np.frombuffer(b"\n" + name if len(self) else name, dtype=np.uint8))
        self.name_hashes.extend([int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")])
        self.task.extend([_number(self._tasks, record.task)])
        self.language.extend([_number(self.languages, record.language)])
        self._first.setdefault((record.task, record.language), record.example_id)
        self.add_sequence(record.sequence)

    def check(self, tasks: Sequence[str], languages: Sequence[str]) -> None:
        """Raise `StoreError` for an id that repeats, or a task or language that the store does not name."""
        for (task, language), example_id in self._first.items():
            if task not in tasks or language not in languages:
                raise StoreError(
                    f"example {example_id!r}: expected a task of {', '.join(tasks)} and a language of "
                    f"{', '.join(languages)}, got {task} in {language}"
                )
        hashes = np.sort(self.name_hashes.read())
        if (hashes[1:] == hashes[:-1]).any():
            seen: set[bytes] = set()
            for name in self.names.read().tobytes().split(b"\n"):
                if name in seen:
                    raise _no_name(name.decode())
                seen.add(name)

    def numbers_of(self, tasks: Sequence[str], languages: Sequence[str]) -> tuple[NDArray[np.uint16], ...]:
        """What each number in the columns of tasks and languages is among the store's."""
        return tuple(
            np.array([of.index(name) for name in own], dtype=np.uint16)
            for own, of in ((self._tasks, tasks), (self.languages, languages))
        )


def write_examples(
    group: zarr.Group,
    columns: ExampleColumns,
    answer_start: NDArray[np.int64],
    tasks: Sequence[str],
    languages: Sequence[str],
    written: Callable[[], object] = lambda: None,
) -> None:
    """Fill a group with the columns that `ExampleTable` reads.

    Args:
        group: of the examples.
        columns: what it gets.
        answer_start: (N,) first row of each on the answer-token axis.
        tasks: of the store.
        languages: of the store.
        written: called again and again; what the group has of chunks may then be taken away.

    Raises:
        StoreError: see `ExampleColumns.check`.
    """
    columns.check(tasks, languages)
    task_of, language_of = columns.numbers_of(tasks, languages)
    create_long_array(group, "example_ids", len(columns.names), np.uint8, columns.names.read, "zstd", written)
    for name, column, number_of in (("task", columns.task, task_of), ("language", columns.language, language_of)):

        def numbers(
            start: int, stop: int, column: Column = column, number_of: NDArray[np.uint16] = number_of
        ) -> NDArray[np.uint16]:
            numbers: NDArray[np.uint16] = number_of[column.read(start, stop)]
            return numbers

        create_long_array(group, name, len(columns), np.uint16, numbers, "pcodec", written)
    write_sequences(group, columns, answer_start, written)


def write_sequences(
    group: zarr.Group,
    columns: SequenceColumns,
    answer_start: NDArray[np.int64],
    written: Callable[[], object] = lambda: None,
) -> None:
    """Write the columns that hold the tokens of N sequences."""

    def write(name: str, column: Column, coder: str = "pcodec") -> None:
        create_long_array(group, name, len(column), column.dtype, column.read, coder, written)

    def write_starts(name: str, lengths: Column) -> None:
        _write_numbers(group, name, starts_of(lengths.read()), written)

    write_starts("context_start", columns.context_length)
    write("context_length", columns.context_length)
    write("context_ids", columns.context_ids, "zstd")
    _write_numbers(group, "answer_start", answer_start, written)
    write("answer_length", columns.answer_length)
    _write_answers(group, columns, answer_start, written)
    write_starts("span_start", columns.span_count)
    write("span_count", columns.span_count)
    write("span_position", columns.span_position)
    write("span_length", columns.span_length)


def write_own(
    group: zarr.Group,
    examples: NDArray[np.int64],
    sequences: Iterable[AnsweredSequence],
    answer_start: NDArray[np.int64],
) -> None:
    """Fill the group of a view's own sequences: which of the store's examples each belongs to, and its tokens."""
    columns = SequenceColumns()
    try:
        for sequence in sequences:
            columns.add_sequence(sequence)
        _write_numbers(group, "example", examples, lambda: None)
        write_sequences(group, columns, answer_start)
    finally:
        columns.close()


def _write_numbers(group: zarr.Group, name: str, values: NDArray[np.int64], written: Callable[[], object]) -> None:
    create_long_array(group, name, len(values), np.int64, lambda start, stop: values[start:stop], "pcodec", written)


def _write_answers(
    group: zarr.Group, columns: SequenceColumns, answer_start: NDArray[np.int64], written: Callable[[], object]
) -> None:
    """The answer tokens where the plan has them; rows that are left over are 0."""
    length = columns.answer_length.read()
    packed = starts_of(length)  # where they begin in the column
    rows = int(answer_start[-1] + length[-1]) if len(length) else 0

    def laid_out(start: int, stop: int) -> NDArray[np.int32]:
        first = max(0, int(np.searchsorted(answer_start, start, side="right")) - 1)
        last = int(np.searchsorted(answer_start, stop, side="left"))
        lengths = length[first:last]
        origin = int(packed[first])
        ids = columns.answer_ids.read(origin, origin + int(lengths.sum()))
        at = np.repeat(answer_start[first:last] - start - (packed[first:last] - origin), lengths) + np.arange(len(ids))
        values, inside = np.zeros(stop - start, dtype=np.int32), (at >= 0) & (at < stop - start)
        values[at[inside]] = ids[inside]
        return values

    create_long_array(group, "answer_ids", rows, np.int32, laid_out, "zstd", written)


def _number(names: list[str], name: str) -> int:
    """The number of a name, a new one for a new name."""
    if name not in names:
        names.append(name)
    return names.index(name)


def _no_name(name: str) -> StoreError:
    return StoreError(f"example_id: expected unique ids without line breaks, got {name!r}")
