"""Examples on disk, so that a data set of any size can be read in any order without being held in memory."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError
from logitbank.tasks.common import Example
from logitbank.tasks.conversations.conversation import Conversation

_TYPE = "\0type"  # a key of JSON objects that stand for what JSON has not
_BUFFERED = 1 << 20  # bytes


class Keeper(Protocol):
    """What takes examples and gives them back by position: a `Spool`, or a `Shelf` for few."""

    def add(self, example: Example) -> int:
        """Keep an example; its position, counted from 0."""

    def __getitem__(self, position: int) -> Example:
        """The example at a position."""


class Shelf:
    """Examples in memory."""

    def __init__(self) -> None:
        self._examples: list[Example] = []

    def add(self, example: Example) -> int:
        """See `Keeper.add`."""
        self._examples.append(example)
        return len(self._examples) - 1

    def __getitem__(self, position: int) -> Example:
        """See `Keeper`."""
        return self._examples[position]


class Spool:
    """Examples in a file without a name in the temporary directory, which ends with the process.

    16 bytes per example stay in memory: where it begins in the file, and a hash of its content.

    Attributes:
        cells: (task, language) of the examples.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="logitbank-", buffering=_BUFFERED)  # noqa: SIM115  # see `close`
        self._starts = array("Q", [0])
        self._hashes = array("Q")
        self._written = 0  # bytes that no buffer holds any longer
        self.cells: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, example: Example) -> int:
        """See `Keeper.add`.

        Raises:
            TaskError: a field of a kind that cannot be kept, or no room in the temporary directory.
        """
        data = _to_bytes(example)
        try:
            self._file.write(data)
        except OSError as error:
            raise TaskError(
                f"{example.example_id}: cannot be written to the temporary directory (TMPDIR): {error.strerror}; it "
                "needs about as much space as the data"
            ) from None
        self.cells.add((example.task, example.language))
        self._starts.append(self._starts[-1] + len(data))
        self._hashes.append(_content_hash(data))
        return len(self._hashes) - 1

    def __getitem__(self, position: int) -> Example:
        """See `Keeper`."""
        start, stop = self._starts[position], self._starts[position + 1]
        if stop > self._written:
            self._file.flush()
            self._written = self._starts[-1]
        return _to_example(os.pread(self._file.fileno(), stop - start, start))

    def digest(self, positions: NDArray[np.int64]) -> str:
        """Hash of the content of some examples, in this order."""
        digest, hashes = hashlib.blake2b(digest_size=16), np.frombuffer(self._hashes, dtype=np.uint64)
        for first in range(0, len(positions), _BUFFERED):
            digest.update(hashes[positions[first : first + _BUFFERED]].astype("<u8").tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Give the room back."""
        self._file.close()


def digest_of(examples: Iterable[Example]) -> str:
    """Hash of the content of examples in memory, in this order; TaskError as `Spool.add`."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(_content_hash(_to_bytes(example)).to_bytes(8, "little"))
    return digest.hexdigest()


def _content_hash(data: bytes) -> int:
    """A number below 2⁶⁴."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _to_bytes(example: Example) -> bytes:
    fields = {name: _plain(example, name, value) for name, value in example.fields.items()}
    whole = [example.example_id, example.task, example.language, fields, example.answer]
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _plain(example: Example, name: str, value: Any) -> Any:
    """A value as JSON has it; what JSON has not as an object that says its type."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Conversation):  # came from JSON itself
        return {_TYPE: "conversation", "of": [value.messages, value.tools, value.teacher_messages]}
    if isinstance(value, list):
        return [_plain(example, name, item) for item in value]
    if isinstance(value, tuple):
        return {_TYPE: "tuple", "of": [_plain(example, name, item) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and _TYPE not in value:
        return {key: _plain(example, name, item) for key, item in value.items()}
    raise TaskError(
        f"{example.example_id}: field {name}: expected text, numbers, and lists, tuples or dictionaries (with text as "
        f"keys) of them, got {type(value).__name__}"
    )


def _to_example(data: bytes) -> Example:
    example_id, task, language, fields, answer = json.loads(
        data.decode("utf-8", "surrogatepass"), object_hook=_restored
    )
    return Example(example_id, task, language, fields, answer)


def _restored(value: dict[str, Any]) -> Any:
    kind = value.get(_TYPE)
    if kind is None:
        return value
    if kind == "tuple":
        return tuple(value["of"])
    messages, tools, teacher = value["of"]
    return Conversation(tuple(messages), tuple(tools), None if teacher is None else tuple(teacher))
