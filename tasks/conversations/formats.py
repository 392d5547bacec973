"""Rows of the formats in use, recognised by their columns, as conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from logitbank.errors import TaskError
from logitbank.tasks.conversations.conversation import Conversation, Message
from logitbank.tasks.conversations.messages import (
    BrokenRow,
    UnusableRow,
    as_list,
    as_text,
    check_calls,
    read_messages,
    read_tools,
    without_unanswered,
)


class Format(NamedTuple):
    """A layout of rows.

    Attributes:
        name: as the log says it.
        columns: that its rows have.
        read: the messages of a row.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[Message]]


class Found(NamedTuple):
    """What a row holds: its conversation, and how many messages after the last answer were dropped."""

    conversation: Conversation
    unanswered: int


def _prompt_and_completion(row: Mapping[str, Any]) -> list[Message]:
    turns: list[Any] = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[column]
        text = isinstance(value, str) or value is None
        turns += [{"role": role, "content": value}] if text else as_list(column, value)
    return read_messages("prompt+completion", turns)


FORMATS = (
    Format("OpenAI messages", ("messages",), lambda row: read_messages("messages", row["messages"])),
    Format(
        "ShareGPT conversations", ("conversations",), lambda row: read_messages("conversations", row["conversations"])
    ),
    Format("prompt and completion", ("prompt", "completion"), _prompt_and_completion),
)


def recognise(columns: Collection[str]) -> Format:
    """The format of rows with these columns.

    Raises:
        BrokenRow: none has them.
    """
    for layout in FORMATS:
        if all(column in columns for column in layout.columns):
            return layout
    raise BrokenRow(
        f"expected a column messages, or conversations, or prompt and completion, got {', '.join(columns) or 'none'}"
    )


def read_row(layout: Format, row: Mapping[str, Any]) -> Found:
    """The conversation of a row.

    Columns beside those of the format: `system`, `tools`, and for a teacher that knows more `context` or
    `teacher_messages`.

    Raises:
        BrokenRow: it is none; names the field.
        UnusableRow: there is nothing in it to learn, or something that is not text.
    """
    if lacking := [column for column in layout.columns if column not in row]:
        raise BrokenRow(f"expected a column {lacking[0]!r} ({layout.name}), got {', '.join(row)}")
    field = "+".join(layout.columns)
    messages = layout.read(row)
    if system := as_text("system", row.get("system")):
        messages = _behind_system(system, messages)
    tools = read_tools("tools", row.get("tools"))
    check_calls(field, messages, tools)
    kept = without_unanswered(messages)
    conversation = Conversation(tuple(kept), tuple(tools), _teacher_messages(field, row, kept))
    try:
        conversation.digest_with_teacher  # noqa: B018
    except UnicodeEncodeError:
        raise UnusableRow("with an invalid character (a lone surrogate)") from None
    return Found(conversation, len(messages) - len(kept))


def with_context(conversation: Conversation, context: str) -> Conversation:
    """The conversation as a teacher reads it to whom a context is given, too.

    Raises:
        BrokenRow: its row brings a context of its own.
    """
    if conversation.teacher_messages is not None:
        raise BrokenRow(
            "expected no context and no teacher_messages because chat.context names a file; use one of them"
        )
    return dataclasses.replace(conversation, teacher_messages=tuple(_behind_system(context, conversation.messages)))


def read_conversation(row: Mapping[str, Any]) -> Conversation | None:
    """The conversation of a row on its own; None if there is nothing in it to learn.

    Raises:
        TaskError: the row is broken; names the field.
    """
    try:
        return read_row(recognise(row.keys()), row).conversation
    except UnusableRow:
        return None
    except BrokenRow as error:
        raise TaskError(str(error)) from None


def _teacher_messages(field: str, row: Mapping[str, Any], messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """What the row says that its teacher reads; None if it says nothing."""
    context = as_text("context", row.get("context"))
    given = row.get("teacher_messages")
    if given is None:
        return tuple(_behind_system(context, messages)) if context else None
    if context:
        raise BrokenRow("expected one of the columns context and teacher_messages, got both")
    theirs = read_messages("teacher_messages", given)
    theirs = without_unanswered(theirs) if theirs else theirs
    ours, own = _answers(messages), _answers(theirs)
    for number, (mine, other) in enumerate(zip(ours, own, strict=False), start=1):
        if mine != other:
            raise BrokenRow(
                f"teacher_messages: expected the same assistant turns as {field}, but turn {number} differs"
            )
    if len(ours) != len(own):
        raise BrokenRow(f"teacher_messages: expected the {len(ours)} assistant turns of {field}, got {len(own)}")
    return tuple(theirs)


def _answers(messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message["role"] == "assistant"]


def _behind_system(text: str, messages: Sequence[Message]) -> list[Message]:
    """The messages after a text as system prompt, which a system message of their own follows in the same turn."""
    own = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    return [{"role": "system", "content": f"{text}\n\n{own}" if own else text}, *rest]
