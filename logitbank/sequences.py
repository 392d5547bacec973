"""Token sequences with answers in them: what a student learns from, and what a teacher reads.

Shape letters: L tokens of a sequence, S answer spans, T answer tokens of all spans together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Span(NamedTuple):
    """A run of answer tokens: the position of its first token in the sequence, and how many there are."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """The position after its last token."""
        return self.start + self.length


class AnsweredSequence:
    """Token ids with one or more answer spans; the last span ends the sequence.

    An answer to a question is one span. A conversation has one for each turn that is learned, its end-of-turn
    token included. Everything outside the spans is context.

    Attributes:
        ids: (L,) int32, the whole sequence.
        spans: S spans in ascending order, which do not overlap or touch; the first has context before it.
    """

    __slots__ = ("ids", "spans")

    ids: NDArray[np.int32]
    spans: tuple[Span, ...]

    def __init__(self, ids: Sequence[int] | NDArray[np.integer], spans: Iterable[Span | tuple[int, int]]) -> None:
        """Check the spans against the ids.

        Raises:
            ValueError: no span, an empty one, spans that overlap, touch or leave the sequence, no context before
                the first, or tokens after the last.
        """
        self.ids = np.asarray(ids, dtype=np.int32)
        self.spans = tuple(Span(int(start), int(length)) for start, length in spans)
        free = 0  # the first position that the next span must leave free
        for span in self.spans:
            if span.start <= free or span.length < 1:
                raise ValueError(
                    f"spans: expected non-empty ascending runs of tokens, each after some context, got {self.spans}"
                )
            free = span.stop
        if not self.spans or free != len(self.ids):
            raise ValueError(f"spans: expected the last to end at {len(self.ids)}, got {self.spans}")

    @classmethod
    def answering(
        cls, prompt_ids: Sequence[int] | NDArray[np.integer], answer_ids: Sequence[int] | NDArray[np.integer]
    ) -> AnsweredSequence:
        """One answer after one prompt; ValueError if either is empty."""
        ids = np.concatenate([np.asarray(prompt_ids, dtype=np.int32), np.asarray(answer_ids, dtype=np.int32)])
        return cls(ids, [(len(prompt_ids), len(answer_ids))])

    @classmethod
    def interleaved(
        cls,
        context_ids: NDArray[np.integer],
        answer_ids: NDArray[np.integer],
        spans: Iterable[Span | tuple[int, int]],
    ) -> AnsweredSequence:
        """The sequence of what is outside and inside its spans: the inverse of `context_ids`, `answer_ids`."""
        placed = [Span(*span) for span in spans]
        is_answer = _mask(len(context_ids) + len(answer_ids), placed)
        ids = np.empty(len(is_answer), dtype=np.int32)
        ids[is_answer], ids[~is_answer] = answer_ids, context_ids
        return cls(ids, placed)

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AnsweredSequence):
            return NotImplemented
        return self.spans == other.spans and np.array_equal(self.ids, other.ids)

    __hash__ = None  # type: ignore[assignment]  # arrays are mutable

    def __repr__(self) -> str:
        return f"AnsweredSequence({len(self.ids)} tokens, spans {list(map(tuple, self.spans))})"

    @property
    def answer_length(self) -> int:
        """T, answer tokens of all spans together."""
        return sum(span.length for span in self.spans)

    @property
    def answer_mask(self) -> NDArray[np.bool_]:
        """(L,) bool, which tokens are answer tokens."""
        return _mask(len(self.ids), self.spans)

    @property
    def answer_positions(self) -> NDArray[np.int64]:
        """(T,) int64, the positions of the answer tokens, span after span."""
        return np.concatenate([np.arange(span.start, span.stop) for span in self.spans])

    @property
    def logit_positions(self) -> NDArray[np.int64]:
        """(T,) int64, the positions whose logits predict the answer tokens: the token at j is predicted at j − 1."""
        return self.answer_positions - 1

    @property
    def answer_ids(self) -> NDArray[np.int32]:
        """(T,) int32, the answer tokens, span after span."""
        return self.ids[self.answer_positions]

    @property
    def context_ids(self) -> NDArray[np.int32]:
        """(L − T,) int32, everything outside the spans, in order."""
        return self.ids[~self.answer_mask]

    @property
    def prompt_ids(self) -> NDArray[np.int32]:
        """What comes before the first span."""
        return self.ids[: self.spans[0].start]


def _mask(length: int, spans: Iterable[Span]) -> NDArray[np.bool_]:
    mask = np.zeros(length, dtype=np.bool_)
    for span in spans:
        mask[span.start : span.stop] = True
    return mask
