"""Examples as token ids: one entrance for every task, whether a student learns from it or a teacher reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from logitbank.sequences import AnsweredSequence
from logitbank.tasks.common import Example, Task
from logitbank.tasks.prompts import EncodedPrompt, PromptEncoder


@dataclass(frozen=True)
class StudentSequence:
    """What a student learns from one example, or from a part of it.

    Attributes:
        sequence: the token ids and their answer spans.
        suffix: goes behind the example's id: empty, or `#<turn>` where one example gives several sequences.
    """

    sequence: AnsweredSequence
    suffix: str = ""


class TeacherSequence(NamedTuple):
    """What a teacher reads under a view.

    Attributes:
        sequence: the spans of the student's sequence behind another context.
        demonstrations: how many it holds, after those dropped for length.
    """

    sequence: AnsweredSequence
    demonstrations: int


class ExampleEncoder:
    """Turns examples of any task into token sequences for a student and its teacher.

    Attributes:
        encoder: of the student.
        teacher_encoder: of the teacher, where its chat template differs from the student's; otherwise None.
        counts: what was left out or changed so far, in words, for one line at the end.
    """

    def __init__(self, encoder: PromptEncoder, teacher: PromptEncoder | None = None) -> None:
        self.encoder = encoder
        self.teacher_encoder = teacher
        self.counts: Counter[str] = Counter()

    def student(self, task: Task, example: Example, *, max_tokens: int) -> list[StudentSequence]:
        """The sequences that a student learns from; none where not even the query fits.

        Args:
            task: whose system prompt and wording to use.
            example: question and answer.
            max_tokens: the longest sequence allowed, answer included.
        """
        answer = self.encoder.encode_answer(example.answer)
        prompt = self.encoder.encode_prompt(task, example, [], max_tokens=max_tokens - len(answer))
        return [] if prompt is None else [StudentSequence(AnsweredSequence.answering(prompt.ids, answer))]

    def teacher(
        self,
        view: str,
        task: Task,
        example: Example,
        student: StudentSequence,
        demonstrations: Sequence[Example],
        *,
        max_tokens: int,
    ) -> TeacherSequence | None:
        """What the teacher reads under a view: the spans of the student's sequence, their ids the same.

        Args:
            view: one of `experiment.VIEWS`.
            task: whose system prompt and wording to use.
            example: what `student` was made of.
            student: one of the sequences that `self.student` gave.
            demonstrations: shown before the query, dropped from the front where they do not fit.
            max_tokens: the longest sequence allowed, answers included.

        Returns:
            None where it does not fit even without demonstrations.
        """
        if view == "zeroshot" and self.teacher_encoder is None:
            return TeacherSequence(student.sequence, 0)
        encoder = self.teacher_encoder or self.encoder
        answer = student.sequence.answer_ids
        prompt = encoder.encode_prompt(task, example, demonstrations, max_tokens=max_tokens - len(answer))
        if prompt is None:
            return None
        return TeacherSequence(AnsweredSequence.answering(prompt.ids, answer), prompt.demonstrations)

    def generation(
        self, task: Task, example: Example, demonstrations: Sequence[Example], *, max_tokens: int
    ) -> EncodedPrompt | None:
        """The prompt behind which the student generates the last answer; None where the query alone does not fit.

        Args:
            task: whose system prompt and wording to use.
            example: what is asked.
            demonstrations: shown before the query, dropped from the front where they do not fit.
            max_tokens: the longest prompt allowed, the answer not counted.
        """
        return self.encoder.encode_prompt(task, example, demonstrations, max_tokens=max_tokens)
