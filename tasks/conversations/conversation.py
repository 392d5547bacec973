"""One conversation, in OpenAI's layout."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Tool = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages that end in an assistant turn.

    Attributes:
        messages: OpenAI's dictionaries: `role` (system, user, assistant, tool), `content` (text, which may be
            empty), and if there is any: `reasoning_content`, `tool_calls` with `arguments` as a mapping,
            `tool_call_id`, `name`.
        tools: descriptions of the tools that may be called.
        teacher_messages: what a teacher that knows more reads instead of `messages`, the same assistant turns in
            it; None if the row names nothing of the kind.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    teacher_messages: tuple[Message, ...] | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Hash of messages and tools, as hexadecimal text: equal for equal conversations, on any machine.

        Raises:
            UnicodeEncodeError: half a character, which JSON can spell and no tokenizer takes.
        """
        return _hash([self.messages, self.tools])

    @functools.cached_property
    def digest_with_teacher(self) -> str:
        """The same hash, of what its row gives the teacher to read as well."""
        return self.digest if self.teacher_messages is None else _hash([self.digest, self.teacher_messages])

    @property
    def answer(self) -> str:
        """Content of the last assistant turn."""
        return str(self.messages[-1]["content"])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
