"""Conversations of a split: from rows of a file to what is learnt from, broken rows named, unusable ones counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from logitbank.errors import TaskError
from logitbank.tasks.conversations.conversation import Conversation
from logitbank.tasks.files import open_rows
from logitbank.tasks.settings import DataSettings


def read_split(task: str, split: str, data: DataSettings) -> Iterator[tuple[str, Conversation]]:
    """Ids and conversations of a split, in the order of its file.

    Args:
        task: whose files.
        split: `train`, `validation` or `test`.
        data: names the files.

    Raises:
        TaskError: no file, one that cannot be opened, or a row that is broken.
    """
    key = f"{task}.{split}"
    file = data.file(task, split)
    if file is None:
        raise TaskError(f"{key}: expected a file or hub id, got none; add {key}=FILE")
    for row in open_rows(key, file):
        conversation = read_conversation(row.values)
        if conversation is not None:
            yield str(row.values.get("id", conversation.digest)), conversation


def read_conversation(row: Mapping[str, Any]) -> Conversation | None:
    """The conversation of a row; None where no assistant turn is in it."""
    messages = tuple(dict(message) for message in row["messages"])
    return Conversation(messages, tuple(row.get("tools") or ())) if messages else None
