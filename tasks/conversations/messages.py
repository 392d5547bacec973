"""Messages as files have them, in OpenAI's layout or ShareGPT's, turned into one layout or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.tasks.conversations.conversation import Message, Tool

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING = ("reasoning_content", "reasoning", "thinking")  # as servers and data sets call it
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


class BrokenRow(ValueError):
    """A row that says something else than its writer meant: the message names the field."""


class UnusableRow(ValueError):
    """A row that is in order and cannot be learned from; the message says what is wrong with it, for counts."""


def read_messages(field: str, value: Any) -> list[Message]:
    """Messages in OpenAI's layout; see `Conversation.messages`.

    Args:
        field: the column, for messages.
        value: its content: a list, or a list as JSON.

    Raises:
        BrokenRow, UnusableRow: a message that is neither.
    """
    messages = [_message(f"{field}[{i}]", item) for i, item in enumerate(as_list(field, value))]
    _check_tool_turns(field, messages)
    return messages


def read_tools(field: str, value: Any) -> list[Tool]:
    """Descriptions of tools, each as `{"type": "function", "function": {"name": …}}`.

    Raises:
        BrokenRow: no list of functions.
    """
    tools: list[Tool] = []
    for i, item in enumerate(as_list(field, value)):
        tool = _object(f"{field}[{i}]", item)
        if "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": tool}
        function = _object(f"{field}[{i}].function", tool.get("function"))
        _text(f"{field}[{i}].function.name", function.get("name"))
        tools.append({**tool, "function": function})
    return tools


def check_calls(field: str, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Refuse a call of a tool that is not described, where any is.

    Raises:
        BrokenRow: names the call.
    """
    known = [tool["function"]["name"] for tool in tools]
    for i, message in enumerate(messages):
        for j, call in enumerate(message.get("tool_calls", ())):
            if known and (name := call["function"]["name"]) not in known:
                place = f"{field}[{i}].tool_calls[{j}]"
                raise BrokenRow(f"{place}: expected one of the row's tools ({', '.join(known)}), got {name!r}")


def without_unanswered(messages: Sequence[Message]) -> list[Message]:
    """The messages up to the last assistant turn.

    Raises:
        UnusableRow: there is none, or one that says nothing and calls nothing.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0:
        raise UnusableRow("without an assistant turn")
    kept = list(messages[: last + 1])
    for message in kept:
        if message["role"] == "assistant" and not message.get("tool_calls") and not _says_something(message["content"]):
            raise UnusableRow("with an empty assistant turn")
    return kept


def as_list(field: str, value: Any) -> list[Any]:
    """A column that holds a list, or a list as JSON; null is an empty one.

    Raises:
        BrokenRow: it holds something else.
    """
    found = _decoded(field, value)
    if found is None:
        return []
    if not isinstance(found, list):
        raise BrokenRow(f"{field}: expected a list, got {_kind(found)}")
    return found


def as_text(field: str, value: Any) -> str:
    """A text; null is an empty one.

    Raises:
        BrokenRow: something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BrokenRow(f"{field}: expected text, got {_kind(value)}")
    return value


def _message(field: str, value: Any) -> Message:
    given = _object(field, value)
    role_field, content_field = ("from", "value") if "from" in given and "role" not in given else ("role", "content")
    named = given.get(role_field)
    if not isinstance(named, str) or named not in ROLES:
        raise BrokenRow(f"{field}.{role_field}: expected one of system, user, assistant, tool, got {named!r}")
    role = ROLES[named]
    content = given.get(content_field)
    if named == "function_call":  # ShareGPT's: the text is the call, or a list of calls
        calls = _decoded(f"{field}.{content_field}", content)
        return {"role": role, "content": "", "tool_calls": _calls(f"{field}.{content_field}", calls)}
    text, reasoning = _content(f"{field}.{content_field}", content)
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        message |= _assistant_fields(field, given, reasoning)
    if role == "tool" and given.get("tool_call_id") is not None:
        message["tool_call_id"] = _text(f"{field}.tool_call_id", given["tool_call_id"])
    if given.get("name") is not None:
        message["name"] = _text(f"{field}.name", given["name"])
    return message


def _assistant_fields(field: str, given: Mapping[str, Any], reasoning: str) -> Message:
    """What an assistant turn holds beside its text."""
    found: Message = {}
    for name in _REASONING:
        reasoning = reasoning or as_text(f"{field}.{name}", given.get(name))
    if reasoning:
        found["reasoning_content"] = reasoning
    if given.get("tool_calls") is not None:
        calls = _calls(f"{field}.tool_calls", as_list(f"{field}.tool_calls", given["tool_calls"]))
        if calls:
            found["tool_calls"] = calls
    elif given.get("function_call") is not None:  # OpenAI's earlier spelling
        found["tool_calls"] = _calls(f"{field}.function_call", [given["function_call"]])
    return found


def _content(field: str, value: Any) -> tuple[str, str]:
    """Text and reasoning of a content that is text, or a list of parts."""
    if not isinstance(value, list):
        return as_text(field, value), ""
    texts, thoughts = [], []
    for i, item in enumerate(value):
        if isinstance(item, str):
            texts.append(as_text(f"{field}[{i}]", item))
            continue
        part = _object(f"{field}[{i}]", item)
        kind = part.get("type", "text" if "text" in part else None)
        if kind in _TEXT_PARTS:
            texts.append(as_text(f"{field}[{i}].text", part.get("text")))
        elif kind in ("thinking", "reasoning"):
            thoughts.append(as_text(f"{field}[{i}].{kind}", part.get(kind)))
        elif isinstance(kind, str):
            raise UnusableRow(f"with {kind.removeprefix('input_').removesuffix('_url')} parts")
        else:
            raise BrokenRow(f"{field}[{i}].type: expected text, got {kind!r}")
    return "".join(texts), "".join(thoughts)


def _calls(field: str, value: Any) -> list[dict[str, Any]]:
    return [_call(f"{field}[{i}]", item) for i, item in enumerate(value if isinstance(value, list) else [value])]


def _call(field: str, value: Any) -> dict[str, Any]:
    call = _object(field, value)
    if "function" not in call and "name" in call:
        call = {"function": call}
    given = _object(f"{field}.function", call.get("function"))
    place = f"{field}.function.arguments"
    arguments = given.get("arguments")
    if isinstance(arguments, str):
        arguments = _decoded(place, arguments) if arguments.strip() else {}
    function = {
        "name": _text(f"{field}.function.name", given.get("name")),
        "arguments": _object(place, {} if arguments is None else arguments),
    }
    own_id = {} if call.get("id") is None else {"id": _text(f"{field}.id", call["id"])}
    return {**own_id, "type": "function", "function": function}


def _check_tool_turns(field: str, messages: Sequence[Message]) -> None:
    """Refuse a tool's result that nobody asked for."""
    asking: Message | None = None  # the assistant turn whose calls are being answered
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            calls = [] if asking is None else asking.get("tool_calls", [])
            in_text = asking is not None and "<tool_call>" in asking["content"]
            if not calls and not in_text:
                raise BrokenRow(f"{field}[{i}]: expected a tool message only after an assistant turn with tool_calls")
            known = [call["id"] for call in calls if "id" in call]
            if known and message.get("tool_call_id", known[0]) not in known:
                wanted = ", ".join(known)
                raise BrokenRow(f"{field}[{i}].tool_call_id: expected one of {wanted}, got {message['tool_call_id']!r}")
        else:
            asking = message if message["role"] == "assistant" else None


def _says_something(text: str) -> bool:
    """Whether there is text after the reasoning."""
    return bool((_THOUGHT.sub("", text, count=1) if "<think>" in text else text).strip())


def _decoded(field: str, value: Any) -> Any:
    """A value, decoded where it is JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise BrokenRow(f"{field}: expected JSON, got text that is not: {str(error).partition(': line')[0]}") from None


def _object(field: str, value: Any) -> dict[str, Any]:
    found = _decoded(field, value)
    if not isinstance(found, dict):
        raise BrokenRow(f"{field}: expected an object, got {_kind(found)}")
    return found


def _text(field: str, value: Any) -> str:
    """A text with something in it."""
    text = as_text(field, value)
    if not text:
        raise BrokenRow(f"{field}: expected text, got {'null' if value is None else 'an empty one'}")
    return text


def _kind(value: Any) -> str:
    """A value's type as JSON calls it."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
