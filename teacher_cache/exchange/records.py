"""Examples in a file without a name, so that an import of any size reads them as often as it needs.

Shape letters: L tokens of a sequence.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import overload

import numpy as np

from logitbank.errors import TaskError
from logitbank.sequences import AnsweredSequence, Span
from logitbank.storage import ExampleRecord

_BUFFERED = 1 << 20  # bytes


class RecordFile(Sequence[ExampleRecord]):
    """Examples in the order in which they were appended; 8 bytes of each are in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="logitbank-", buffering=_BUFFERED)  # noqa: SIM115  # see `__exit__`
        self._starts = array("Q", [0])
        self._written = 0  # bytes that no buffer holds any longer

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: ExampleRecord) -> None:
        """Keep an example; TaskError if the temporary directory has no room."""
        names = "\n".join([record.example_id, record.task, record.language]).encode()
        spans = np.asarray(record.sequence.spans, np.int32).ravel()
        sizes = np.array([len(names), len(spans)], np.int32)
        data = b"".join([sizes.tobytes(), names, spans.tobytes(), record.sequence.ids.tobytes()])
        try:
            self._file.write(data)
        except OSError as error:
            raise TaskError(f"import: the temporary directory (TMPDIR) cannot be used: {error.strerror}") from None
        self._starts.append(self._starts[-1] + len(data))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[ExampleRecord]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, number: int) -> ExampleRecord: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[ExampleRecord]: ...
    def __getitem__(self, number: int | slice) -> ExampleRecord | Sequence[ExampleRecord]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        start, stop = self._starts[number], self._starts[number + 1]
        if stop > self._written:
            self._file.flush()
            self._written = self._starts[-1]
        data = os.pread(self._file.fileno(), stop - start, start)
        named, marked = np.frombuffer(data, np.int32, 2).tolist()
        ids_at = 8 + named + 4 * marked
        example_id, task, language = data[8 : 8 + named].decode().split("\n")
        spans = map(Span, *np.frombuffer(data[8 + named : ids_at], np.int32).reshape(-1, 2).T.tolist())
        ids = np.frombuffer(data[ids_at:], np.int32)
        return ExampleRecord(example_id, task, language, AnsweredSequence(ids, spans))
