"""Conversations as sequences: what a student learns from, what a teacher reads under each view, what is generated."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from logitbank.sequences import AnsweredSequence
from logitbank.tasks.common import Example, TaskError
from logitbank.tasks.conversations.conversation import Conversation, Message, Tool
from logitbank.tasks.conversations.template import ConversationTemplate, Refused, thinks
from logitbank.tasks.conversations.turns import RenderedConversation, Turn
from logitbank.tasks.encoded import AnswerPrompt, StudentSequence, TeacherSequence
from logitbank.tasks.prompts import EncodedPrompt, PromptEncoder
from logitbank.tasks.settings import ChatSettings

Group = tuple[int, ...]
Ids = TypeVar("Ids", AnsweredSequence, NDArray[np.int32])


class ConversationEncoder:
    """Turns conversations into token sequences for a student and its teacher; see `tasks.encoding`."""

    def __init__(
        self, encoder: PromptEncoder, teacher: PromptEncoder | None, chat: ChatSettings, counts: Counter[str]
    ) -> None:
        """Study the templates.

        Args:
            encoder: of the student.
            teacher: of the teacher, where its chat template differs from the student's.
            chat: which turns are learned, and whether thinking is kept.
            counts: what is left out or changed is added here.
        """
        thinking = chat.thinking == "keep"
        self._student = ConversationTemplate(encoder, thinking=thinking)
        self._teacher = self._student if teacher is None else ConversationTemplate(teacher, thinking=thinking)
        self._turns = chat.turns
        self._thinking = thinking
        self._counts = counts
        self._latest: tuple[Conversation, dict[str, RenderedConversation]] | None = None

    def student(self, example: Example, *, max_tokens: int) -> list[StudentSequence]:
        """The sequences that a student learns from, in the order of their last turns.

        Raises:
            TaskError: the template cannot show what conversations hold; see `RenderedConversation.turn`.
        """
        conversation = example.fields["conversation"]
        try:
            rendered, groups = self._groups(conversation)
            learned = [_learned(rendered, group, alone=len(groups) == 1) for group in groups]
        except Refused as reason:
            self._counts[f"conversations left out, because {reason}"] += 1
            return []
        except TaskError as error:
            raise TaskError(f"{example.example_id}: {error}") from error
        self._count(conversation, rendered, groups)
        if rendered.assistant_turns > len(rendered.numbers):
            self._counts["opening assistant turns, not learned"] += 1
        if not groups:
            self._counts["conversations without a turn to learn"] += 1
            return []
        fitting = [part for part in (_cut(sequence, max_tokens) for sequence in learned) if part is not None]
        if not fitting:
            self._counts["conversations left out, because the first turn is too long"] += 1
            return []
        if lost := sum(map(len, groups)) - sum(len(part.turns) for part in fitting):
            self._counts["conversations cut for length"] += 1
            self._counts["assistant turns cut for length"] += lost
        return fitting

    def prompts(self, example: Example) -> list[AnswerPrompt]:
        """The prompt of every turn that is learned, in their order; see `ExampleEncoder.prompts`.

        Raises:
            TaskError: see `student`.
        """
        conversation = example.fields["conversation"]
        try:
            rendered = self._own(conversation)
            numbers = self._learnt_turns(rendered)
            found = [(number, rendered.ids(number).prompt) for number in numbers]
        except Refused as reason:
            self._counts[f"conversations left out, because {reason}"] += 1
            return []
        except TaskError as error:
            raise TaskError(f"{example.example_id}: {error}") from error
        if not found:
            self._counts["conversations without a turn to learn"] += 1
        alone = len(found) == 1
        return [AnswerPrompt(ids, "" if alone else _suffix(rendered, number), number) for number, ids in found]

    def teacher(
        self,
        view: str,
        example: Example,
        student: StudentSequence,
        demonstrations: Sequence[Example],
        *,
        max_tokens: int,
    ) -> TeacherSequence | None:
        """What the teacher reads under a view; None if it does not fit even without demonstrations.

        Raises:
            TaskError: a view that conversations do not have, or a turn that the teacher's template writes with
                other tokens.
        """
        if view == "shuffled_answers":
            raise TaskError(
                f"--view shuffled_answers: expected a task with one answer, got {example.task}; "
                "use zeroshot, fewshot or context"
            )
        conversation = example.fields["conversation"]
        if view == "zeroshot" and self._teacher is self._student:
            return TeacherSequence(student.sequence, 0) if len(student.sequence) <= max_tokens else None
        if view == "context" and conversation.teacher_messages is None:
            raise TaskError(
                f"{example.example_id}: --view context: expected a longer context for the teacher, got none; give "
                "chat.context=FILE, or a column `context` or `teacher_messages`"
            )
        found = self._first_that_fits(
            example,
            demonstrations,
            lambda shown: self._read(self._reading(view, conversation, shown), conversation, student),
            max_tokens,
        )
        return None if found is None else TeacherSequence(*found)

    def generation(
        self, example: Example, demonstrations: Sequence[Example], *, max_tokens: int
    ) -> EncodedPrompt | None:
        """The prompt of the last turn; None if it does not fit even without demonstrations."""
        conversation = example.fields["conversation"]

        def prompt_ids(shown: Sequence[Example]) -> NDArray[np.int32]:
            rendered = _with_demonstrations(self._student, conversation, shown) if shown else self._own(conversation)
            return rendered.ids(-1).prompt

        found = self._first_that_fits(example, demonstrations, prompt_ids, max_tokens)
        return None if found is None else EncodedPrompt(found[0].tolist(), found[1])

    def _first_that_fits(
        self,
        example: Example,
        demonstrations: Sequence[Example],
        make: Callable[[Sequence[Example]], Ids],
        max_tokens: int,
    ) -> tuple[Ids, int] | None:
        """What `make` gives with as many demonstrations as fit, dropped from the front, and how many these are.

        Raises:
            TaskError: what `make` raises, after the example's id.
        """
        for start in range(len(demonstrations) + 1):
            shown = demonstrations[start:]
            try:
                made = make(shown)
            except Refused as reason:
                if not shown:
                    self._counts[f"conversations left out, because {reason}"] += 1
                continue
            except TaskError as error:
                raise TaskError(f"{example.example_id}: {error}") from error
            if len(made) <= max_tokens:
                return made, len(shown)
        return None

    def _groups(self, conversation: Conversation) -> tuple[RenderedConversation, list[Group]]:
        """Which turns share a sequence under every template and context that they are read in."""
        rendered = self._own(conversation)
        numbers = self._learnt_turns(rendered)
        groups = rendered.groups(numbers)
        readings = []
        if self._teacher is not self._student:
            readings.append(self._reading("zeroshot", conversation, ()))
        if conversation.teacher_messages is not None:
            readings.append(self._reading("context", conversation, ()))
        for reading in readings:
            if any(reading.turn(number).end_of_turn != rendered.turn(number).end_of_turn for number in numbers):
                groups = [(number,) for number in numbers]  # nothing follows an end of turn of its own
            groups = _common(groups, reading.groups(numbers))
        return rendered, groups

    def _learnt_turns(self, rendered: RenderedConversation) -> list[int]:
        wanted = rendered.numbers if self._turns == "all" else rendered.numbers[-1:]
        return [number for number in wanted if rendered.turn(number).marked]

    def _read(
        self, reading: RenderedConversation, conversation: Conversation, student: StudentSequence
    ) -> AnsweredSequence:
        """The student's spans as they are in a teacher's reading of the conversation."""
        if len(student.turns) > 1:
            if reading.groups(student.turns) != [student.turns]:
                raise TaskError(
                    "the chat template renders these turns differently after demonstrations, so they cannot share a "
                    "sequence; use --view zeroshot"
                )
            sequence = reading.sequence(student.turns)
            self._check_same(sequence, student.sequence)
            return sequence
        (number,) = student.turns
        if student.sampled:  # other than the turn that the template renders there
            return AnsweredSequence.answering(reading.ids(number).prompt, student.sequence.answer_ids)
        own, theirs = self._own(conversation).turn(number), reading.turn(number)
        if own.said != theirs.said or not self._end_alike(own, theirs):
            self._check_same(reading.sequence(student.turns), student.sequence)
        return AnsweredSequence.answering(reading.ids(number).prompt, student.sequence.answer_ids)

    def _end_alike(self, own: Turn, theirs: Turn) -> bool:
        """Whether both end with one token, or each with its template's usual one."""
        if own.end_of_turn == theirs.end_of_turn:
            return True
        usual = self._student.end_of_turn, self._teacher.end_of_turn
        return (own.end_of_turn or usual[0], theirs.end_of_turn or usual[1]) == usual

    def _check_same(self, theirs: AnsweredSequence, ours: AnsweredSequence) -> None:
        """Refuse answers of other tokens, naming the first."""
        length = max(theirs.answer_length, ours.answer_length)
        got, expected = (
            np.pad(it.answer_ids, (0, length - it.answer_length), constant_values=-1) for it in (theirs, ours)
        )
        different = np.flatnonzero(got != expected)
        if len(different) == 0:
            return
        name = self._student.encoder.tokenizer.convert_ids_to_tokens
        first, second = (
            repr(name(int(ids[different[0]]))) if ids[different[0]] >= 0 else "nothing" for ids in (expected, got)
        )
        raise TaskError(
            f"teacher.model: expected its chat template to write assistant turns with the student's tokens, but it "
            f"writes {second} where the student's has {first}; give both the same template"
        )

    def _own(self, conversation: Conversation) -> RenderedConversation:
        return self._kept(conversation, "own", self._student, conversation.messages)

    def _reading(self, view: str, conversation: Conversation, shown: Sequence[Example]) -> RenderedConversation:
        """The conversation as the teacher reads it under a view."""
        if shown:
            return _with_demonstrations(self._teacher, conversation, shown)
        if view == "context":
            return self._kept(conversation, "context", self._teacher, conversation.teacher_messages or ())
        if self._teacher is self._student:
            return self._own(conversation)
        return self._kept(conversation, "teacher", self._teacher, conversation.messages)

    def _kept(
        self, conversation: Conversation, name: str, template: ConversationTemplate, messages: Sequence[Message]
    ) -> RenderedConversation:
        """A rendering of the conversation at hand, kept until the next one comes."""
        if self._latest is None or self._latest[0] is not conversation:
            self._latest = conversation, {}
        kept = self._latest[1]
        if name not in kept:
            kept[name] = RenderedConversation(template, messages, conversation.tools)
        return kept[name]

    def _count(self, conversation: Conversation, rendered: RenderedConversation, groups: Sequence[Group]) -> None:
        if len(groups) > 1:
            self._counts["conversations split, because the template renders turns differently once others follow"] += 1
            self._counts["examples made of split conversations"] += len(groups)
        if not self._thinking and any(map(thinks, conversation.messages)):
            self._counts["conversations with thinking dropped"] += 1


def _learned(rendered: RenderedConversation, group: Group, *, alone: bool) -> StudentSequence:
    return StudentSequence(rendered.sequence(group), "" if alone else _suffix(rendered, group[-1]), group)


def _suffix(rendered: RenderedConversation, turn: int) -> str:
    return f"#{rendered.assistant_turns + turn + 1}"


def _cut(sequence: StudentSequence, max_tokens: int) -> StudentSequence | None:
    """The sequence up to the last turn that fits; None if none does."""
    spans = [span for span in sequence.sequence.spans if span.stop <= max_tokens]
    if not spans:
        return None
    whole = AnsweredSequence(sequence.sequence.ids[: spans[-1].stop], spans)
    return dataclasses.replace(sequence, sequence=whole, turns=sequence.turns[: len(spans)])


def _common(groups: Sequence[Group], others: Sequence[Group]) -> list[Group]:
    """Turns that are together in both."""
    found: dict[tuple[int, int], list[int]] = {}
    place = {number: index for index, group in enumerate(others) for number in group}
    for index, group in enumerate(groups):
        for number in group:
            found.setdefault((index, place[number]), []).append(number)
    return sorted((tuple(group) for group in found.values()), key=lambda group: group[-1])


def _with_demonstrations(
    template: ConversationTemplate, conversation: Conversation, shown: Sequence[Example]
) -> RenderedConversation:
    """A conversation with others as its earlier turns.

    Its own system prompt opens it. That of a demonstration opens the demonstration's first user turn, unless it is
    the same. The tools are the conversation's, then those of the demonstrations whose names are not yet taken.
    """
    own = list(conversation.messages)
    opening = own[:1] if own[0]["role"] == "system" else []
    messages: list[Message] = list(opening)
    tools: dict[str, Tool] = {_name(tool): tool for tool in conversation.tools}
    for example in shown:
        demonstration: Conversation = example.fields["conversation"]
        turns = list(demonstration.messages)
        if turns[0]["role"] == "system":
            system = turns.pop(0)["content"]
            if opening and opening[0]["content"] == system:
                pass
            elif turns and turns[0]["role"] == "user":
                turns[0] = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
            else:
                turns.insert(0, {"role": "user", "content": system})
        messages += turns
        for tool in demonstration.tools:
            tools.setdefault(_name(tool), tool)
    return RenderedConversation(template, [*messages, *own[len(opening) :]], list(tools.values()))


def _name(tool: Tool) -> str:
    return str((tool.get("function") or tool).get("name", ""))
