"""The examples of a store: written once with the base, read lazily and in bounded memory.

Shape letters: N examples, P prompt tokens of all examples, T rows of the answer-token axis.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.storage.teacher_store.layout import FLAT_CHUNK, create_flat_array


@dataclass(frozen=True)
class ExampleRecord:
    """One example as a store keeps it.

    Attributes:
        example_id: unique in the store, no line breaks.
        task: one of the store's tasks.
        language: one of the store's languages.
        prompt_ids: the student's zero-shot prompt.
        answer_ids: answer and end-of-turn token; the same ids end every view's sequence.
    """

    example_id: str
    task: str
    language: str
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


def write_examples(
    group: zarr.Group,
    records: Sequence[ExampleRecord],
    answer_start: NDArray[np.int64],
    tasks: Sequence[str],
    languages: Sequence[str],
) -> None:
    """Fill a group with the columns that `ExampleTable` reads.

    Raises:
        StoreError: an id that repeats or holds a line break, an empty prompt, or a task or language
            that the store does not name.
    """
    ids = [record.example_id for record in records]
    seen: set[str] = set()
    for name in ids:
        if "\n" in name or name in seen:
            raise StoreError(f"example_id: expected unique ids without line breaks, got {name!r}")
        seen.add(name)
    for record in records:
        if record.task not in tasks or record.language not in languages:
            raise StoreError(
                f"example {record.example_id!r}: expected a task of {', '.join(tasks)} and a language of "
                f"{', '.join(languages)}, got {record.task} in {record.language}"
            )
        if not len(record.prompt_ids):
            raise StoreError(f"example {record.example_id!r}: expected a prompt of at least one token, got none")
    prompt_length = np.array([len(record.prompt_ids) for record in records], dtype=np.int32)
    answer_length = np.array([len(record.answer_ids) for record in records], dtype=np.int32)
    answer_rows = int(answer_start[-1] + answer_length[-1]) if len(records) else 0
    answer_ids = np.zeros(answer_rows, dtype=np.int32)
    for start, record in zip(answer_start, records, strict=True):
        answer_ids[start : start + len(record.answer_ids)] = record.answer_ids
    prompt_ids = np.concatenate(
        [np.asarray(record.prompt_ids, dtype=np.int32) for record in records] or [np.zeros(0, np.int32)]
    )
    joined = np.frombuffer("\n".join(ids).encode(), dtype=np.uint8)
    create_flat_array(group, "example_ids", joined, "zstd")
    create_flat_array(group, "task", np.array([tasks.index(r.task) for r in records], np.uint16), "pcodec")
    create_flat_array(group, "language", np.array([languages.index(r.language) for r in records], np.uint16), "pcodec")
    create_flat_array(group, "prompt_start", np.cumsum(prompt_length, dtype=np.int64) - prompt_length, "pcodec")
    create_flat_array(group, "prompt_length", prompt_length, "pcodec")
    create_flat_array(group, "prompt_ids", prompt_ids, "zstd")
    create_flat_array(group, "answer_start", answer_start, "pcodec")
    create_flat_array(group, "answer_length", answer_length, "pcodec")
    create_flat_array(group, "answer_ids", answer_ids, "zstd")


class ExampleTable:
    """N examples: small columns in memory, token ids read in chunks as they are asked for.

    Attributes:
        example_id: (N,) list of str.
        task: (N,) uint16, index into the store's tasks.
        language: (N,) uint16, index into the store's languages.
        prompt_length: (N,) int32, tokens.
        answer_length: (N,) int32, tokens.
        answer_start: (N,) int64, first row on the answer-token axis.
    """

    def __init__(self, open_array: Callable[[str], zarr.Array[Any]]) -> None:
        """Args: `open_array` opens one of the group's arrays by name."""
        joined = _read_all(open_array("example_ids")).tobytes().decode()
        self.task = _read_all(open_array("task"))
        self.language = _read_all(open_array("language"))
        self.prompt_length = _read_all(open_array("prompt_length"))
        self.answer_length = _read_all(open_array("answer_length"))
        self.answer_start = _read_all(open_array("answer_start"))
        self.example_id: list[str] = joined.split("\n") if len(self.task) else []
        self._prompt_start = _read_all(open_array("prompt_start"))
        self._prompts = _ChunkedReader(open_array("prompt_ids"))
        self._answers = _ChunkedReader(open_array("answer_ids"))
        self._index: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.task)

    def prompt_ids(self, example: int) -> NDArray[np.int32]:
        """The example's zero-shot prompt, (prompt_length,) int32."""
        return self._prompts.read(int(self._prompt_start[example]), int(self.prompt_length[example]))

    def answer_ids(self, example: int) -> NDArray[np.int32]:
        """The example's answer tokens, end of turn included, (answer_length,) int32."""
        return self._answers.read(int(self.answer_start[example]), int(self.answer_length[example]))

    def index_of(self, example_id: str) -> int:
        """Position of an example.

        Raises:
            StoreError: the store has no example of that id.
        """
        if self._index is None:
            self._index = {name: position for position, name in enumerate(self.example_id)}
        if example_id not in self._index:
            some = ", ".join(self.example_id[:3])
            raise StoreError(f"example {example_id!r}: not in the store, whose ids are like {some}")
        return self._index[example_id]


class _ChunkedReader:
    """Slices of a flat array, the latest chunks kept decoded."""

    def __init__(self, array: zarr.Array[Any], keep: int = 64) -> None:
        self._array = array
        self._keep = keep
        self._chunks: OrderedDict[int, NDArray[np.int32]] = OrderedDict()

    def read(self, start: int, length: int) -> NDArray[np.int32]:
        stop = start + length
        parts = []
        for chunk in range(start // FLAT_CHUNK, (stop - 1) // FLAT_CHUNK + 1):
            origin = chunk * FLAT_CHUNK
            parts.append(self._chunk(chunk)[max(start - origin, 0) : stop - origin])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chunk(self, chunk: int) -> NDArray[np.int32]:
        if chunk not in self._chunks:
            origin = chunk * FLAT_CHUNK
            self._chunks[chunk] = np.asarray(self._array[origin : origin + FLAT_CHUNK])
            if len(self._chunks) > self._keep:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(chunk)
        return self._chunks[chunk]


def _read_all(array: zarr.Array[Any]) -> NDArray[Any]:
    return np.asarray(array[:])
