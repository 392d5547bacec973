"""Chat: conversations of one's own, taught turn by turn; see docs/conversations.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from logitbank.tasks.common import UNDETERMINED, Example, Source
from logitbank.tasks.conversations import Conversation, read_conversation, read_split
from logitbank.tasks.scoring.likelihood import LikelihoodScores
from logitbank.tasks.settings import DataSettings


class Chat(LikelihoodScores):
    """Conversations, whose assistant turns are learned, and scored by their likelihood."""

    name = "chat"
    system_prompt = ""  # conversations bring their own
    languages: tuple[str, ...] = (UNDETERMINED,)
    sources: Mapping[str, Source] = {}
    num_demonstrations = 2
    max_new_tokens = 512
    labels: tuple[str, ...] = ()
    max_student_tokens = 8192
    max_teacher_tokens = 16384

    def examples(self, split: str, data: DataSettings) -> Iterator[Example]:
        """The conversations of a split; see `ReadsFiles`."""
        for name, conversation in read_split(self.name, split, data):
            yield self._example(f"{self.name}/{UNDETERMINED}/{split}/{name}", conversation)

    def content_key(self, example: Example) -> str:
        """The hash of messages and tools."""
        return str(example.fields["conversation"].digest)

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row in any of the formats that files may have; None for one without an assistant turn."""
        conversation = read_conversation(row)
        return None if conversation is None else self._example(example_id, conversation)

    def user_message(self, example: Example) -> str:
        """The last message before the answer."""
        messages = example.fields["conversation"].messages
        return str(messages[-2]["content"]) if len(messages) > 1 else ""

    def reference(self, example: Example) -> str:
        """The text of the last assistant turn."""
        return example.answer

    def parse(self, output: str) -> str | None:
        """The whole text without surrounding space; None if nothing is left."""
        return output.strip() or None

    def _example(self, example_id: str, conversation: Conversation) -> Example:
        return Example(example_id, self.name, UNDETERMINED, {"conversation": conversation}, conversation.answer)


TASK = Chat()
