"""Conversations as text and as token ids, the way one tokenizer's chat template writes them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.tasks.control_tokens import ControlTokens, without_marks
from logitbank.tasks.conversations.conversation import Message
from logitbank.tasks.prompts import TEMPLATE_ARGUMENTS, PromptEncoder, without_clock

# What a model without a chat template reads: as `PromptEncoder` writes questions and answers without one.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
    "{% elif m.role == 'user' %}{{ m.content + '\\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% endif %}{% endfor %}"
)
OPENING = "<think>\n"  # of reasoning that is in an assistant's content
_LEADING_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_READS_REASONING = re.compile(r"\breasoning_content\b|\.thinking\b|\[['\"]thinking['\"]\]|['\"]thinking['\"] in ")
_CACHED_PIECES = 512  # of text between control tokens, whose ids are kept

Region = tuple[int, int]


class Refused(Exception):
    """One conversation that the template cannot show; its text says why."""


class ConversationTemplate:
    """Renders messages, and tokenises what was rendered.

    A control token that the data spell out (`<|im_end|>` in a user's message) stays text: it is rendered between
    two marks, which `ids` takes out again.

    Attributes:
        encoder: whose tokenizer and chat template.
        thinking: whether reasoning is kept, and shown as the template shows it.
        marks_generation: whether the template says with `{% generation %}` what a model generates.
    """

    def __init__(self, encoder: PromptEncoder, *, thinking: bool = False) -> None:
        self.encoder = encoder
        self.thinking = thinking
        self._arguments = {**TEMPLATE_ARGUMENTS, "enable_thinking": thinking}
        self._sources = {tools: self._source(tools) for tools in (False, True)}
        source = self._sources[False]
        self.marks_generation = _MARKERS.search(source) is not None
        self._reads_reasoning = _READS_REASONING.search(source) is not None
        self._controls = ControlTokens(encoder.tokenizer, source)
        self._special = tuple(sorted({*self._controls.special, self.end_of_turn}, key=len, reverse=True))
        self._piece_ids = functools.lru_cache(_CACHED_PIECES)(self._ids_of_piece)

    def prepare(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[list[Message], Any]:
        """Messages and tools as the template takes them: thinking kept or not, control tokens marked.

        A system prompt opens the first user turn where the template has no system role.
        """
        prepared = [self._prepared(message) for message in messages]
        if not self.encoder.system_role and prepared and prepared[0]["role"] == "system":
            system = prepared.pop(0)["content"]
            if prepared and prepared[0]["role"] == "user":
                prepared[0] = {**prepared[0], "content": f"{system}\n\n{prepared[0]['content']}"}
            else:
                prepared.insert(0, {"role": "user", "content": system})
        return prepared, self._controls.mark(list(tools)) or None

    def render(self, messages: Sequence[Message], tools: Any, *, generation_prompt: bool) -> tuple[str, list[Region]]:
        """The text of prepared messages, and where in it the template says that a model generated it.

        Raises:
            Refused: the template does not take these messages.
        """
        if not messages:
            raise Refused("no message comes before an assistant turn")
        from transformers.utils import chat_template_utils  # slow to import

        try:
            rendered: Any = chat_template_utils.render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self._sources[bool(tools)],
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=self.marks_generation,
                **{**self.encoder.tokenizer.special_tokens_map, **self._arguments},
            )
        except Exception as error:  # a template may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Refused(f"the chat template rejects it: {without_marks(reason)}") from error
        texts, regions = rendered
        return str(texts[0]), list(regions[0]) if regions else []

    def ids(self, text: str) -> NDArray[np.int32]:
        """Token ids of rendered text, or of its beginning: those that `apply_chat_template` gives it."""
        pieces = [self._piece_ids(piece) for piece in self._controls.pieces(text)]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)

    @property
    def end_of_turn(self) -> str:
        """The token that usually ends a turn."""
        return str(self.encoder.tokenizer.convert_ids_to_tokens(self.encoder.end_of_turn_id))

    def find_end(self, text: str, start: int) -> tuple[int, str] | None:
        """Where the turn that begins at `start` and is last in `text` ends, and the token it ends with.

        What a template writes after a turn is white space and control tokens; the turn ends with the encoder's
        end of turn where that is among them, and with the first of them otherwise.

        Returns:
            The position after the token, and the token; None if the template writes none.
        """
        found: list[tuple[int, str]] = []
        stop = len(text.rstrip())
        while token := next((token for token in self._special if text.endswith(token, start, stop)), None):
            found.append((stop, token))
            stop = len(text[start : stop - len(token)].rstrip()) + start
        if not found:
            return None
        own = self.end_of_turn
        return next((item for item in reversed(found) if item[1] == own), found[-1])

    def ends_turn(self, text: str) -> bool:
        """Whether text holds nothing but what may follow an answer: control tokens and white space."""
        for token in self._special:
            text = text.replace(token, "")
        return not text.strip()

    def shows(self, content: str, text: str) -> bool:
        """Whether prepared content appears in rendered text, as it is or as JSON writes it."""
        content = content.strip()
        return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text

    def _prepared(self, message: Message) -> Message:
        fields = {name: self._controls.mark(value) for name, value in message.items() if name != "reasoning_content"}
        if message["role"] != "assistant":
            return fields
        content, reasoning = str(message["content"]), message.get("reasoning_content")
        if match := _LEADING_THOUGHT.match(content):
            content = content[match.end() :]
            reasoning = match.group(1).strip("\n") if reasoning is None else reasoning
        fields["content"] = self._controls.mark(content)
        if not self.thinking or not (reasoning or "").strip():
            return fields
        reasoning = self._controls.mark(str(reasoning))
        if self._reads_reasoning:
            return {**fields, "reasoning_content": reasoning}
        return {**fields, "content": f"{OPENING}{reasoning}\n</think>\n\n{fields['content']}"}

    def _source(self, tools: bool) -> str:
        if not self.encoder.has_template:
            return self.encoder.opens_with + PLAIN_TEMPLATE
        return without_clock(self.encoder.tokenizer.get_chat_template(tools=[] if tools else None))

    def _ids_of_piece(self, piece: str) -> NDArray[np.int32]:
        return np.asarray(self._controls.ids(piece), dtype=np.int32)


def thinks(message: Message) -> bool:
    """Whether an assistant's message holds reasoning."""
    if message["role"] != "assistant":
        return False
    return bool(message.get("reasoning_content")) or _LEADING_THOUGHT.match(str(message["content"])) is not None
