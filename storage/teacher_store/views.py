"""What a view's teacher read: the students' sequences, the same answers after a different context, or sequences of its
own.

Shape letters: N sequences of a view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError, counted
from logitbank.sequences import AnsweredSequence
from logitbank.storage.teacher_store.layout import ShardPlan
from logitbank.storage.teacher_store.vocabulary import Vocabulary

BOUNDABLE = ("logits", "logsumexp", "entropy", "gold")  # what a view may know as a bound alone
Saw = Literal["student", "context"]  # what a teacher saw of the store's examples


@dataclass(frozen=True)
class Tokens:
    """What token ids stand for.

    Attributes:
        tokenizer_size: ids below this may be stored; rows above are padding of the `lm_head`.
        vocab_size: rows of the teacher's `lm_head`.
        tokenizer_hash: of the tokenizer that made every id.
    """

    tokenizer_size: int
    vocab_size: int
    tokenizer_hash: str


@dataclass(frozen=True)
class OtherTeacher:
    """A teacher with a tokenizer of its own, for one view.

    Attributes:
        identity: its model, revision, weights hash, engine, dtype …
        tokens: its token ids.
        vocabulary: learns the numbering of its tokens; called only when the view is new, then frozen in it.
    """

    identity: Mapping[str, Any]
    tokens: Tokens
    vocabulary: Callable[[], Vocabulary]


@dataclass(frozen=True)
class OwnSequences:
    """Sequences that one view has for itself: answers that somebody else wrote, or the tokens of another teacher.

    Attributes:
        example_ids: (N,) which of the store's examples each belongs to; not all need have one, and one may have
            several.
        sequences: (N,) what the teacher reads, its answer spans marked.
        teacher: where its tokenizer is not the store's.
    """

    example_ids: Sequence[str]
    sequences: Sequence[AnsweredSequence]
    teacher: OtherTeacher | None = None

    def positions(self, names: Sequence[str]) -> NDArray[np.int64]:
        """(N,) positions of the examples among the store's; StoreError for one that the store does not have."""
        if len(self.example_ids) != len(self.sequences):
            raise StoreError(
                f"own sequences: expected one example id per sequence, got {len(self.example_ids)} ids and "
                f"{counted(len(self.sequences), 'sequence')}"
            )
        position_of = {name: position for position, name in enumerate(names)}
        absent = [name for name in self.example_ids if name not in position_of]
        if absent:
            raise StoreError(f"own sequences: example {absent[0]!r} is not in the store")
        return np.array([position_of[name] for name in self.example_ids], dtype=np.int64)

    def identity(self) -> dict[str, Any]:
        """All that decides the content of the view's own sequences."""
        digest = hashlib.sha256("\n".join(self.example_ids).encode())
        for sequence in self.sequences:
            add_sequence(digest, sequence)
        found: dict[str, Any] = {"count": len(self.sequences), "hash": digest.hexdigest()}
        if self.teacher is not None:
            found |= {"teacher": dict(self.teacher.identity), **vars(self.teacher.tokens)}
        return found


@dataclass(frozen=True)
class ViewLayout:
    """How a view's rows are laid out and what their ids stand for; the store's own, unless it has sequences of its own.

    Attributes:
        plan: which rows belong to which example.
        chunk_tokens: rows of an inner chunk.
        tokens: what ids stand for.
        vocabulary: the numbering of tokens.
    """

    plan: ShardPlan
    chunk_tokens: int
    tokens: Tokens
    vocabulary: Vocabulary


def add_sequence(digest: hashlib._Hash, sequence: AnsweredSequence) -> None:
    """Let a digest see a sequence, and where it ends.

    One answer is hashed as in format 3, so that the same content keeps its fingerprint. No other sequence gives the
    same bytes: no span is of length 0.
    """
    several = [(len(sequence.spans), 0)] if len(sequence.spans) > 1 else []
    digest.update(np.asarray([*several, *sequence.spans], "<i8").tobytes())
    digest.update(sequence.ids.astype("<i4").tobytes())
