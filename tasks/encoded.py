"""What examples become: the sequences that students learn from and teachers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitbank.sequences import AnsweredSequence


@dataclass(frozen=True)
class StudentSequence:
    """What a student learns from one example, or from a part of it.

    Attributes:
        sequence: the token ids and their answer spans.
        suffix: follows the example's id: empty, or `#<turn>` where one example gives several sequences.
        turns: of a conversation, which assistant turn each span holds, counted from its end: −1 is the last.
        sampled: whether a model wrote the answer; it is then not what the example says.
    """

    sequence: AnsweredSequence
    suffix: str = ""
    turns: tuple[int, ...] = (-1,)
    sampled: bool = False


@dataclass(frozen=True)
class AnswerPrompt:
    """What a student reads before an answer that it may write itself.

    Attributes:
        ids: (L,) int32, the generation prompt included.
        suffix: follows the example's id: empty, or `#<turn>` where a conversation has several turns to write.
        turn: of a conversation, which assistant turn it leads to, counted from its end: −1 is the last.
    """

    ids: NDArray[np.int32]
    suffix: str = ""
    turn: int = -1


class TeacherSequence(NamedTuple):
    """What a teacher reads under a view.

    Attributes:
        sequence: the spans of the student's sequence after a different context.
        demonstrations: how many it holds, after those dropped for length.
    """

    sequence: AnsweredSequence
    demonstrations: int
