"""Examples as token ids: one entrance for every task, whether a student learns from it or a teacher reads it."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from logitbank.sequences import AnsweredSequence
from logitbank.tasks.common import Example, Task
from logitbank.tasks.conversations.conversation import Conversation
from logitbank.tasks.conversations.encoder import ConversationEncoder
from logitbank.tasks.encoded import AnswerPrompt, StudentSequence, TeacherSequence
from logitbank.tasks.prompts import EncodedPrompt, PromptEncoder
from logitbank.tasks.settings import ChatSettings

__all__ = ["ExampleEncoder", "StudentSequence", "TeacherSequence"]


_DEFAULT_CHAT = ChatSettings()


class ExampleEncoder:
    """Turns examples of any task into token sequences for a student and its teacher.

    Attributes:
        encoder: of the student.
        teacher_encoder: of the teacher, where its chat template differs from the student's; otherwise None.
        counts: what was left out or changed so far, in words, for one line at the end.
    """

    def __init__(
        self, encoder: PromptEncoder, teacher: PromptEncoder | None = None, chat: ChatSettings = _DEFAULT_CHAT
    ) -> None:
        """Take the encoders.

        Args:
            encoder: of the student.
            teacher: of the teacher, where its chat template differs from the student's.
            chat: which turns of conversations are learned, and whether thinking is kept.
        """
        self.encoder = encoder
        self.teacher_encoder = teacher
        self.counts: Counter[str] = Counter()
        self._chat = chat

    @functools.cached_property
    def _conversations(self) -> ConversationEncoder:
        return ConversationEncoder(self.encoder, self.teacher_encoder, self._chat, self.counts)

    def student(self, task: Task, example: Example, *, max_tokens: int) -> list[StudentSequence]:
        """The sequences that a student learns from; none if even the query does not fit.

        Args:
            task: whose system prompt and wording to use.
            example: question and answer.
            max_tokens: the longest sequence allowed, answer included.
        """
        if _is_conversation(example):
            return self._conversations.student(example, max_tokens=max_tokens)
        answer = self.encoder.encode_answer(example.answer)
        prompt = self.encoder.encode_prompt(task, example, [], max_tokens=max_tokens - len(answer))
        return [] if prompt is None else [StudentSequence(AnsweredSequence.answering(prompt.ids, answer))]

    def prompts(self, task: Task, example: Example) -> list[AnswerPrompt]:
        """The prompts that lead to an example's answers, of any length: one, or one for each turn that is learned.

        Each follows the messages that the example gives, the assistant's included.
        """
        if _is_conversation(example):
            return self._conversations.prompts(example)
        prompt = self.encoder.encode_prompt(task, example, [], max_tokens=sys.maxsize)
        return [] if prompt is None else [AnswerPrompt(np.asarray(prompt.ids, dtype=np.int32))]

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
            None if it does not fit even without demonstrations.
        """
        if _is_conversation(example):
            return self._conversations.teacher(view, example, student, demonstrations, max_tokens=max_tokens)
        if view == "zeroshot" and self.teacher_encoder is None:
            return TeacherSequence(student.sequence, 0) if len(student.sequence) <= max_tokens else None
        encoder = self.teacher_encoder or self.encoder
        answer = student.sequence.answer_ids
        prompt = encoder.encode_prompt(task, example, demonstrations, max_tokens=max_tokens - len(answer))
        if prompt is None:
            return None
        return TeacherSequence(AnsweredSequence.answering(prompt.ids, answer), prompt.demonstrations)

    def generation(
        self, task: Task, example: Example, demonstrations: Sequence[Example], *, max_tokens: int
    ) -> EncodedPrompt | None:
        """The prompt after which the student generates the last answer; None if the query alone does not fit.

        Args:
            task: whose system prompt and wording to use.
            example: what is asked.
            demonstrations: shown before the query, dropped from the front where they do not fit.
            max_tokens: the longest prompt allowed, the answer not counted.
        """
        if _is_conversation(example):
            return self._conversations.generation(example, demonstrations, max_tokens=max_tokens)
        return self.encoder.encode_prompt(task, example, demonstrations, max_tokens=max_tokens)


def _is_conversation(example: Example) -> bool:
    return isinstance(example.fields.get("conversation"), Conversation)
