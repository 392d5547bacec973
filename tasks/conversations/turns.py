"""Which tokens of a conversation are learned: what the model would have generated, turn by turn.

A turn is learned as the model meets it: its prompt is what the template writes for the messages before it, the
generation prompt included, and its answer is what the template writes after that, up to the end of turn. Turns
share one sequence where the rendering of a later one begins with that of an earlier one, text and tokens alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.sequences import AnsweredSequence, Span
from logitbank.tasks.common import TaskError
from logitbank.tasks.control_tokens import without_marks
from logitbank.tasks.conversations.conversation import Message
from logitbank.tasks.conversations.template import OPENING, ConversationTemplate, Refused

# Reasoning models' templates open a block in the generation prompt; without thinking it is closed at once.
_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*\Z")
_EXCERPT = 60
_PROBE = "\N{SNOWMAN} probe"  # an answer that begins like no other


@dataclass(frozen=True)
class Turn:
    """One assistant turn as the model meets it.

    Attributes:
        prompt: what is rendered before the answer.
        text: prompt and answer, up to and with the end of turn.
        end_of_turn: the token that ends it; empty where the template writes none, and the encoder's is added.
        marked: false where the template marks what is generated with `{% generation %}`, but not this turn.
    """

    prompt: str
    text: str
    end_of_turn: str
    marked: bool = True

    @property
    def answer(self) -> str:
        """What the model generates."""
        return self.text[len(self.prompt) :]

    @property
    def said(self) -> str:
        """The answer without the end of turn."""
        return self.answer.removesuffix(self.end_of_turn)


@dataclass(frozen=True)
class TurnIds:
    """Token ids of a turn.

    Attributes:
        ids: (L,) int32, prompt and answer, the end of turn included.
        start: where the answer begins.
    """

    ids: NDArray[np.int32]
    start: int

    @property
    def prompt(self) -> NDArray[np.int32]:
        """What comes before the answer."""
        return self.ids[: self.start]

    @property
    def answer(self) -> NDArray[np.int32]:
        """The answer, the end of turn included."""
        return self.ids[self.start :]


class RenderedConversation:
    """The assistant turns of a list of messages through one template; rendered when asked for.

    Turns are numbered from the end: −1 is the last, so that numbers hold whatever is put before the conversation.
    """

    def __init__(
        self, template: ConversationTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> None:
        """Prepare the messages; nothing is rendered yet."""
        self.template = template
        self._messages, self._tools = template.prepare(messages, tools)
        self._joined = len(messages) - len(self._messages)  # a system prompt that opens the first user turn
        self._at = [number for number, message in enumerate(self._messages) if message["role"] == "assistant"]
        #: Assistant turns of all kinds.
        self.assistant_turns = len(self._at)
        #: Turns that follow something.
        self.numbers = [number for number, index in enumerate(self._at, start=-len(self._at)) if index > 0]
        self._turns: dict[int, Turn] = {}
        self._ids: dict[int, TurnIds] = {}

    def turn(self, number: int) -> Turn:
        """One turn, checked to show what it holds.

        Raises:
            Refused: the template does not take the messages up to it, or does not show one of them.
            TaskError: the template does not show tools or reasoning, or writes a turn so that no generation prompt
                leads to it.
        """
        if number not in self._turns:
            if -number > len(self._at):
                raise TaskError(f"teacher_messages: expected {-number} assistant turns, got {len(self._at)}")
            index = self._at[number]
            turn = self._render(index)
            # Some templates show the system prompt or the tools in certain turns only: one before each is enough.
            self._check_shown(index, turn, since=self._at[number - 1] if number - 1 in self._turns else 0)
            self._turns[number] = turn
        return self._turns[number]

    def ids(self, number: int) -> TurnIds:
        """The token ids of one turn; raises as `turn`."""
        if number not in self._ids:
            turn, encoder = self.turn(number), self.template.encoder
            prompt, whole = self.template.ids(turn.prompt), self.template.ids(turn.text)
            if not _begins_with(whole, prompt):  # a token straddles the two: the answer is tokenised apart
                whole = np.concatenate([prompt, self.template.ids(turn.answer)])
            if not turn.end_of_turn:
                whole = np.append(whole, np.int32(encoder.end_of_turn_id))
            self._ids[number] = TurnIds(whole, len(prompt))
        return self._ids[number]

    def groups(self, numbers: Sequence[int]) -> list[tuple[int, ...]]:
        """Turns that share a sequence, each group ascending, in the order of their last turns; raises as `turn`.

        Args:
            numbers: the turns that are learned, ascending.
        """
        groups: list[list[int]] = []
        for number in numbers:
            self.turn(number)
        for number in reversed(numbers):
            for group in groups:
                if self._shares(number, group[0]):
                    group.append(number)
                    break
            else:
                groups.append([number])
        return [tuple(reversed(group)) for group in reversed(groups)]

    def sequence(self, numbers: Sequence[int]) -> AnsweredSequence:
        """The sequence of turns that share one: the last of `numbers` ends it; raises as `turn`."""
        turns = [self.ids(number) for number in numbers]
        return AnsweredSequence(turns[-1].ids, [Span(turn.start, len(turn.answer)) for turn in turns])

    def _shares(self, number: int, last: int) -> bool:
        """Whether a turn appears in the sequence of a later one as the model meets it: the same text and tokens."""
        if not self.turn(last).text.startswith(self.turn(number).text):
            return False
        own, prompt = self.ids(number).ids, self.ids(last).prompt
        return len(own) < len(prompt) and _begins_with(prompt, own)

    def _render(self, index: int) -> Turn:
        """The turn of a message; see `turn`."""
        template = self.template
        prompt, _ = template.render(self._messages[:index], self._tools, generation_prompt=True)
        text, regions = template.render(self._messages[: index + 1], self._tools, generation_prompt=False)
        marked = True
        if not text.startswith(prompt):
            prompt, text = self._led_to(index, prompt, text, regions)
        elif template.marks_generation:
            own = [start for start, stop in regions if stop > len(prompt)]
            marked = bool(own)
            prompt = text[: max([len(prompt), *own[:1]])]
        end = template.find_end(text, len(prompt))
        stop, token = (max(len(prompt), len(text.rstrip())), "") if end is None else end
        return Turn(prompt.removesuffix(template.encoder.answer_space), text[:stop], token, marked)

    def _led_to(self, index: int, prompt: str, text: str, regions: Sequence[tuple[int, int]]) -> tuple[str, str]:
        """Prompt and whole text of a turn whose rendering does not begin with the generation prompt."""
        if regions and self.template.ends_turn(text[regions[-1][1] :]):  # the template itself says what is generated
            return text[: regions[-1][0]], text
        for thought, closing in ((_OPEN_THOUGHT, "</think>\n\n"), (_EMPTY_THOUGHT, "")):
            match = thought.search(prompt)
            if match and text.startswith(prompt[: match.start()]):
                answer = text[match.start() :]
                return prompt + closing, prompt + closing + answer
        if (start := self._behind_last_message(index, prompt, text)) is not None:
            return prompt, prompt + text[start:]
        place = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), 0)
        theirs, ours = (without_marks(it[max(place - 20, 0) :][:_EXCERPT]) for it in (text, prompt))
        raise TaskError(
            "the chat template does not write an assistant turn after its generation prompt: expected it after "
            f"{ours!r}, got {theirs!r}; mark generated text in the template with {{% generation %}}"
        )

    def _behind_last_message(self, index: int, prompt: str, text: str) -> int | None:
        """Where the answer begins in a rendering that differs from the prompt before its last message only.

        Mistral's templates move the system prompt to the last message, if that is a user's. What prompt and
        rendering write from that message on must be the same, up to where the rendering depends on the answer.
        """
        last = str(self._messages[index - 1]["content"]).strip()
        place = prompt.rfind(last) if last else -1
        if place < 0:
            return None
        probe = [*self._messages[:index], {"role": "assistant", "content": _PROBE}]
        other, _ = self.template.render(probe, self._tools, generation_prompt=False)
        same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
        before, found, header = text[:same].rpartition(prompt[place:])
        return len(before) + len(found) if found and not header.strip() else None

    def _check_shown(self, index: int, turn: Turn, *, since: int) -> None:
        """Refuse a rendering that leaves out what the messages say, those before `since` aside."""
        for tool in (self._tools or ()) if since == 0 else ():
            name = str((tool.get("function") or tool).get("name", ""))
            if name not in turn.prompt:
                raise TaskError(
                    f"the chat template does not show tools: expected {name!r} in the prompt; use a tokenizer whose "
                    "template supports tools, or leave `tools` out"
                )
        for number, message in enumerate(self._messages[since:index], start=since):
            role, content = str(message["role"]), str(message["content"])
            if role == "assistant" or self.template.shows(content, turn.prompt):
                continue
            if role == "tool":
                raise TaskError(
                    f"the chat template does not show tool messages: expected {_short(content)} in the prompt; use a "
                    "tokenizer whose template supports tools"
                )
            raise Refused(f"the chat template does not show message {number + 1 + self._joined} ({role})")
        self._check_answer_shown(index, turn)

    def _check_answer_shown(self, index: int, turn: Turn) -> None:
        message = self._messages[index]
        calls = Counter(str((call.get("function") or call)["name"]) for call in message.get("tool_calls") or ())
        for name, count in calls.items():
            if turn.answer.count(name) < count:
                raise TaskError(
                    f"the chat template does not show tool calls: expected {count} of {name!r} in an assistant turn, "
                    f"got {_short(turn.answer)}; use a tokenizer whose template supports tools"
                )
        content, reasoning = str(message["content"]), str(message.get("reasoning_content", ""))
        thought = self.template.thinking and content.startswith(OPENING)  # which the generation prompt may open
        shown = self.template.shows(content.removeprefix(OPENING) if thought else content, turn.answer)
        if (thought and not shown) or not self.template.shows(reasoning, turn.answer):
            raise TaskError(
                "chat.thinking: expected a chat template that shows reasoning, but this one drops it; "
                "use chat.thinking=drop"
            )
        if not shown:
            raise Refused(f"the chat template does not show the text of message {index + 1 + self._joined} (assistant)")


def _begins_with(ids: NDArray[np.int32], beginning: NDArray[np.int32]) -> bool:
    return len(beginning) <= len(ids) and np.array_equal(ids[: len(beginning)], beginning)


def _short(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…")
