"""Conversations for tests: real ones of the shared files, small ones made here, and a reference for what is learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logitbank.tasks import TASKS, Example
from logitbank.tasks.conversations import Conversation
from logitbank.tasks.encoding import ExampleEncoder, StudentSequence, TeacherSequence
from logitbank.tasks.prompts import PROMPT_DATE

CHAT = TASKS["chat"]


def chat(
    messages: Sequence[Any], tools: Sequence[Any] = (), name: str = "0", teacher: Sequence[Any] | None = None
) -> Example:
    """An example of the chat task."""
    conversation = Conversation(tuple(messages), tuple(tools), None if teacher is None else tuple(teacher))
    return Example(f"chat/und/train/{name}", "chat", "und", {"conversation": conversation}, conversation.answer)


def turns(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """User and assistant in turn, behind a system prompt."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return opening + [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """An assistant's message that calls a tool."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def real_chats(shared: Path, prefix: str, count: int) -> list[Example]:
    """The first real training conversations whose id begins with `prefix`."""
    lines = (shared / "chat" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["id"].startswith(prefix)][:count]
    return [chat(row["messages"], row.get("tools") or (), row["id"]) for row in rows]


def student(examples: ExampleEncoder, example: Example, max_tokens: int = 100_000) -> list[StudentSequence]:
    """What a student learns from a conversation."""
    return examples.student(CHAT, example, max_tokens=max_tokens)


def teacher(
    examples: ExampleEncoder, view: str, example: Example, shown: Sequence[Example] = (), max_tokens: int = 100_000
) -> list[TeacherSequence | None]:
    """What a teacher reads for each sequence of the student."""
    own = student(examples, example)
    return [examples.teacher(view, CHAT, example, part, shown, max_tokens=max_tokens) for part in own]


def template_ids(
    tokenizer: Any, example: Example, stop: int, *, prompt: bool, thinking: bool = False, sanitize: bool = False
) -> list[int]:
    """`apply_chat_template` over the first `stop` messages."""
    conversation = example.fields["conversation"]
    ids = tokenizer.apply_chat_template(
        list(conversation.messages[:stop]),
        tools=list(conversation.tools) or None,
        add_generation_prompt=prompt,
        enable_thinking=thinking,
        date_string=PROMPT_DATE,
        return_dict=False,
        sanitize_control_tokens=sanitize,
    )
    return [int(token) for token in ids]


def generated(
    tokenizer: Any, example: Example, ends: Sequence[int], *, thinking: bool = False, sanitize: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of every assistant turn, the answer read off one token at a time up to its end of turn."""
    pairs = []
    for index, message in enumerate(example.fields["conversation"].messages):
        if message["role"] != "assistant":
            continue
        prompt = template_ids(tokenizer, example, index, prompt=True, thinking=thinking, sanitize=sanitize)
        whole = template_ids(tokenizer, example, index + 1, prompt=False, thinking=thinking, sanitize=sanitize)
        assert whole[: len(prompt)] == prompt, "the reference needs a template whose turns follow their prompts"
        answer: list[int] = []
        while not answer or answer[-1] not in ends:
            answer.append(whole[len(prompt) + len(answer)])
        pairs.append((prompt, answer))
    return pairs


def learned(sequences: Sequence[StudentSequence]) -> dict[int, tuple[list[int], list[int]]]:
    """What stands before each learned turn, and its tokens, by the turn's number from the end."""
    found = {}
    for part in sequences:
        for number, span in zip(part.turns, part.sequence.spans, strict=True):
            assert number not in found, "no turn is learned twice"
            found[number] = (
                part.sequence.ids[: span.start].tolist(),
                part.sequence.ids[span.start : span.stop].tolist(),
            )
    return found


def by_number(pairs: Sequence[tuple[list[int], list[int]]]) -> dict[int, tuple[list[int], list[int]]]:
    """Turns in order, numbered from the end."""
    return dict(enumerate(pairs, start=-len(pairs)))
