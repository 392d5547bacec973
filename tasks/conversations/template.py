"""Conversations as text and as token ids, the way one tokenizer's chat template writes them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.tasks.conversations.conversation import Message
from logitbank.tasks.prompts import TEMPLATE_ARGUMENTS, PromptEncoder, without_clock

# What a model without a chat template reads: as `PromptEncoder` writes questions and answers without one.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
    "{% elif m.role == 'user' %}{{ m.content + '\\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% endif %}{% endfor %}"
)
OPENING = "<think>\n"  # of reasoning that stands in an assistant's content
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
    two marks, which only `ids` and `without_marks` take out again.

    Attributes:
        encoder: whose tokenizer and chat template.
        thinking: whether reasoning is kept, and shown as the template shows it.
        marks_generation: whether the template says with `{% generation %}` what a model generates.
    """

    def __init__(self, encoder: PromptEncoder, *, thinking: bool = False) -> None:
        from transformers.utils import chat_template_utils  # slow to import

        self.encoder = encoder
        self.thinking = thinking
        self._library = chat_template_utils
        # The library's own marks around a control token that is text.
        self._mark, self._unmark = chat_template_utils.mark_control_tokens("x", re.compile("x")).split("x")
        self._arguments = {**TEMPLATE_ARGUMENTS, "enable_thinking": thinking}
        self._sources = {tools: self._source(tools) for tools in (False, True)}
        source = self._sources[False]
        self.marks_generation = _MARKERS.search(source) is not None
        self._reads_reasoning = _READS_REASONING.search(source) is not None
        tokens = [token for token in encoder.tokenizer.added_tokens_decoder.values() if not str(token).isspace()]
        self._spelled = _any_of(str(token) for token in tokens if token.special or str(token) in source)
        special = {str(token) for token in tokens if token.special} | {self.end_of_turn}
        self._special = tuple(sorted(special, key=len, reverse=True))
        # Text is cut before these: what stands on either side of them is tokenised on its own anyway.
        cuts = [str(token) for token in tokens if token.special and not (token.lstrip or token.normalized)]
        self._cut = re.compile(rf"(?<!{self._mark})(?={_any_of(cuts).pattern})")
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
        return prepared, self._marked(list(tools)) or None

    def render(self, messages: Sequence[Message], tools: Any, *, generation_prompt: bool) -> tuple[str, list[Region]]:
        """The text of prepared messages, and where in it the template says that a model generated it.

        Raises:
            Refused: the template does not take these messages.
        """
        if not messages:
            raise Refused("nothing stands before an assistant turn")
        try:
            rendered: Any = self._library.render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self._sources[bool(tools)],
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=self.marks_generation,
                **{**self.encoder.tokenizer.special_tokens_map, **self._arguments},
            )
        except Exception as error:  # a template may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Refused(f"the chat template refuses it: {self.without_marks(reason)}") from error
        texts, regions = rendered
        return str(texts[0]), list(regions[0]) if regions else []

    def ids(self, text: str) -> NDArray[np.int32]:
        """Token ids of rendered text, or of its beginning: those that `apply_chat_template` gives it."""
        pieces = [self._piece_ids(piece) for piece in self._cut.split(text) if piece]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)

    @property
    def end_of_turn(self) -> str:
        """The token that usually ends a turn."""
        return str(self.encoder.tokenizer.convert_ids_to_tokens(self.encoder.end_of_turn_id))

    def find_end(self, text: str, start: int) -> tuple[int, str] | None:
        """Where the turn that begins at `start` and stands last in `text` ends, and the token it ends with.

        What a template writes behind a turn is white space and control tokens; the turn ends with the encoder's
        end of turn where that is among them, and with the first of them otherwise.

        Returns:
            The position behind the token, and the token; None where the template writes none.
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

    def spelled(self, text: str) -> str:
        """A text from data as it stands in what is rendered: control tokens that it spells out are marked."""
        if self._mark in text or self._unmark in text:
            text = self.without_marks(text)
        return self._spelled.sub(f"{self._mark}\\g<0>{self._unmark}", text)

    def without_marks(self, text: str) -> str:
        """Rendered text, to read."""
        return text.replace(self._mark, "").replace(self._unmark, "")

    def shows(self, content: str, text: str) -> bool:
        """Whether prepared content stands in rendered text, as it is or as JSON writes it."""
        content = content.strip()
        return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text

    def _prepared(self, message: Message) -> Message:
        fields = {name: self._marked(value) for name, value in message.items() if name != "reasoning_content"}
        if message["role"] != "assistant":
            return fields
        content, reasoning = str(message["content"]), message.get("reasoning_content")
        if match := _LEADING_THOUGHT.match(content):
            content = content[match.end() :]
            reasoning = match.group(1).strip("\n") if reasoning is None else reasoning
        fields["content"] = self.spelled(content)
        if not self.thinking or not (reasoning or "").strip():
            return fields
        reasoning = self.spelled(str(reasoning))
        if self._reads_reasoning:
            return {**fields, "reasoning_content": reasoning}
        return {**fields, "content": f"{OPENING}{reasoning}\n</think>\n\n{fields['content']}"}

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.spelled(value)
        if isinstance(value, Mapping):
            return {key: self._marked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(item) for item in value]
        return value

    def _source(self, tools: bool) -> str:
        if not self.encoder.has_template:
            return self.encoder.opens_with + PLAIN_TEMPLATE
        return without_clock(self.encoder.tokenizer.get_chat_template(tools=[] if tools else None))

    def _ids_of_piece(self, piece: str) -> NDArray[np.int32]:
        tokenizer = self.encoder.tokenizer
        if self._mark in piece or self._unmark in piece:
            ids = self._library.encode_marked_chat(tokenizer, piece)
        else:
            ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)


def thinks(message: Message) -> bool:
    """Whether an assistant's message holds reasoning."""
    if message["role"] != "assistant":
        return False
    return bool(message.get("reasoning_content")) or _LEADING_THOUGHT.match(str(message["content"])) is not None


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    if not longest_first:
        return re.compile("(?!)")
    starts = "".join(sorted({re.escape(token[0]) for token in longest_first}))
    return re.compile(f"(?=[{starts}])(?:{'|'.join(map(re.escape, longest_first))})")
