"""Conversations: what they hold, the formats they are written in, and what is wrong with a row."""

from logitbank.tasks.conversations.conversation import Conversation, Message, Tool
from logitbank.tasks.conversations.formats import read_conversation
from logitbank.tasks.conversations.reading import read_split

__all__ = ["Conversation", "Message", "Tool", "read_conversation", "read_split"]
