"""What examples become: the sequences that students learn from and teachers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from logitbank.sequences import AnsweredSequence


@dataclass(frozen=True)
class StudentSequence:
    """What a student learns from one example, or from a part of it.

    Attributes:
        sequence: the token ids and their answer spans.
        suffix: goes behind the example's id: empty, or `#<turn>` where one example gives several sequences.
        turns: of a conversation, which assistant turn each span holds, counted from its end: −1 is the last.
    """

    sequence: AnsweredSequence
    suffix: str = ""
    turns: tuple[int, ...] = (-1,)


class TeacherSequence(NamedTuple):
    """What a teacher reads under a view.

    Attributes:
        sequence: the spans of the student's sequence behind another context.
        demonstrations: how many it holds, after those dropped for length.
    """

    sequence: AnsweredSequence
    demonstrations: int
