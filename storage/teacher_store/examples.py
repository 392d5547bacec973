"""The examples of a store: written once with the base, read lazily and in bounded memory.

Shape letters: N examples, S answer spans of all examples, C context tokens of all examples, T rows of the
answer-token axis.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.sequences import AnsweredSequence, Span
from logitbank.storage.groups import ChunkedReader, ExampleIds, read_all
from logitbank.storage.teacher_store.layout import FORMAT_VERSION


@dataclass(frozen=True)
class ExampleRecord:
    """One example as a store keeps it.

    Attributes:
        example_id: unique in the store, no line breaks.
        task: one of the store's tasks.
        language: one of the store's languages.
        sequence: what the student reads, its answer spans marked.
    """

    example_id: str
    task: str
    language: str
    sequence: AnsweredSequence

    @classmethod
    def from_labels(
        cls,
        example_id: str,
        input_ids: Sequence[int],
        labels: Sequence[int],
        *,
        task: str = "chat",
        language: str = "und",
    ) -> ExampleRecord:
        """An example whose labels say which tokens are learned, as trainers have them.

        Args:
            example_id: unique in the store.
            input_ids: (L,) the whole sequence.
            labels: (L,) the same ids where a token is learned, −100 elsewhere. Tokens after the last learned one are
                dropped, because nothing is predicted there.
            task: name of the task.
            language: code of the language; `und` is undetermined.

        Raises:
            StoreError: another length, a label that is not its token, none at all, or one on the first token.
        """
        ids, marks = np.asarray(input_ids, np.int32), np.asarray(labels)
        learned = np.flatnonzero(marks != -100)
        if marks.shape != ids.shape or not len(learned) or learned[0] == 0 or (marks[learned] != ids[learned]).any():
            raise StoreError(
                f"example {example_id}, labels: expected one for each of its {len(ids)} tokens: the token id or "
                "-100, at least one id, and -100 first; check how they were made"
            )
        stop = int(learned[-1]) + 1
        edges = np.flatnonzero(np.diff(np.concatenate([[False], marks[:stop] != -100, [False]])))
        spans = zip(edges[::2], edges[1::2] - edges[::2], strict=True)
        return cls(example_id, task, language, AnsweredSequence(ids[:stop], spans))

    @property
    def id(self) -> str:
        """The same as `example_id`."""
        return self.example_id

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """(L,) int32, the whole sequence."""
        return self.sequence.ids

    @property
    def answer_ids(self) -> NDArray[np.int32]:
        """(T,) int32, the answer tokens, span after span."""
        return self.sequence.answer_ids

    @property
    def answer_positions(self) -> NDArray[np.int64]:
        """(T,) int64, the positions of the answer tokens in `input_ids`."""
        return self.sequence.answer_positions

    @property
    def prompt_ids(self) -> NDArray[np.int32]:
        """What comes before the first span."""
        return self.sequence.prompt_ids


class ExampleTable:
    """N examples: small columns in memory, the rest read in chunks as it is asked for.

    `table[i]` is an `ExampleRecord`, and a loop over the table yields all of them.

    A view's own table holds sequences of its own for the store's examples, several for one or none at all.

    Attributes:
        example: (N,) positions in the store's examples: 0 to N − 1 but in a view's own table.
        example_id: (N,) names, decoded as they are asked for.
        task: (N,) uint16, index into the store's tasks.
        language: (N,) uint16, index into the store's languages.
        input_length: (N,) int32, tokens of the whole sequence.
        answer_length: (N,) int32, tokens of all spans.
        answer_start: (N,) int64, first row on the answer-token axis.
    """

    def __init__(
        self,
        open_array: Callable[[str], zarr.Array[Any]],
        format_version: int = FORMAT_VERSION,
        of: ExampleTable | None = None,
        *,
        names: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> None:
        """Read the small columns.

        Args:
            open_array: opens one of the group's arrays by name.
            format_version: of the store.
            of: the store's examples, where the table is a view's own.
            names: tasks and languages, which the columns count; those of `of` where that is given.
        """
        self._names: tuple[Sequence[str], Sequence[str]] = names if of is None else of._names
        context = "prompt" if format_version == 3 else "context"
        self.example: NDArray[np.int64] | range
        if of is None:
            self.task = read_all(open_array("task"))
            self.language = read_all(open_array("language"))
            self.example = range(len(self.task))
            self.example_id = ExampleIds.joined(read_all(open_array("example_ids")), len(self.task))
        else:
            self.example = read_all(open_array("example"))
            self.task, self.language = of.task[self.example], of.language[self.example]
            self.example_id = of.example_id.take(self.example)
        self.answer_length = read_all(open_array("answer_length"))
        self.answer_start = read_all(open_array("answer_start"))
        self.input_length: NDArray[np.int32] = read_all(open_array(f"{context}_length")) + self.answer_length
        self._context_start = ChunkedReader(open_array(f"{context}_start"))
        self._context = ChunkedReader(open_array(f"{context}_ids"))
        self._answers = ChunkedReader(open_array("answer_ids"))
        spans = ("span_start", "span_count", "span_position", "span_length") if format_version > 3 else ()
        self._spans = tuple(ChunkedReader(open_array(name)) for name in spans)

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, position: int) -> ExampleRecord:
        """One example; a negative position counts from the end. IndexError outside the table."""
        position = operator.index(position)
        if not -len(self) <= position < len(self):
            raise IndexError(f"example {position}: expected 0 to {len(self) - 1}")
        position %= len(self)
        tasks, languages = self._names
        return ExampleRecord(
            example_id=self.example_id[position],
            task=tasks[self.task[position]],
            language=languages[self.language[position]],
            sequence=self.sequence(position),
        )

    def sequence(self, example: int) -> AnsweredSequence:
        """What the student reads, its answer spans marked."""
        context_length = int(self.input_length[example]) - int(self.answer_length[example])
        context_ids = self._context.read(self._context_start.one(example), context_length)
        answer_ids, spans = self.answer_ids(example), self._spans_of(example)
        if len(spans) == 1:  # half the time of what serves any number
            return AnsweredSequence(np.concatenate([context_ids, answer_ids]), spans)
        return AnsweredSequence.interleaved(context_ids, answer_ids, spans)

    def answer_ids(self, example: int) -> NDArray[np.int32]:
        """The example's answer tokens, ends of turn included, span after span, (answer_length,) int32."""
        return self._answers.read(int(self.answer_start[example]), int(self.answer_length[example]))

    def _spans_of(self, example: int) -> list[Span]:
        if not self._spans:  # format 3: one answer after one prompt
            length = int(self.answer_length[example])
            return [Span(int(self.input_length[example]) - length, length)]
        starts, counts, positions, lengths = self._spans
        first, count = starts.one(example), counts.one(example)
        if count == 1:
            return [Span(positions.one(first), lengths.one(first))]
        return list(map(Span, positions.read(first, count).tolist(), lengths.read(first, count).tolist()))

    def positions_of(self, example_id: str) -> NDArray[np.int64]:
        """The positions of an example, ascending: more than once where a view has several sequences of it, or
        nowhere.
        """
        return self.example_id.positions_of(example_id)

    def index_of(self, example_id: str) -> int:
        """Position of an example, the first where a view has several sequences of it.

        Raises:
            StoreError: there is no example of that id.
        """
        found = self.positions_of(example_id)
        if not len(found):
            some = ", ".join(self.example_id[:3])
            raise StoreError(f"example {example_id!r}: not in the store; its ids look like {some}")
        return int(found[0])
