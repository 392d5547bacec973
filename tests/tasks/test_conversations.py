"""Conversations from the formats in use: what they become, and what is wrong with a row."""

from __future__ import annotations

import json
from typing import Any

import pytest

from logitbank.tasks import TaskError
from logitbank.tasks.conversations import Conversation, read_conversation

USER = {"role": "user", "content": "Rain tomorrow?"}
ANSWER = {"role": "assistant", "content": "No."}
CALL = {"type": "function", "function": {"name": "forecast", "arguments": {"day": "tomorrow", "hours": None}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "dry"}
TOOL = {"type": "function", "function": {"name": "forecast", "description": "The weather", "parameters": {}}}
SYSTEM = {"role": "system", "content": "Be brief."}
WITH_TOOLS = [SYSTEM, USER, CALLING, RESULT, ANSWER]


def read(**row: Any) -> Conversation:
    found = read_conversation(row)
    assert found is not None
    return found


def messages_of(*messages: dict[str, Any], **row: Any) -> list[dict[str, Any]]:
    return list(read(messages=list(messages), **row).messages)


SAME: dict[str, dict[str, Any]] = {
    "as it is": {"messages": WITH_TOOLS, "tools": [TOOL]},
    "JSON columns": {"messages": json.dumps(WITH_TOOLS), "tools": json.dumps([TOOL])},
    "JSON items": {"messages": [json.dumps(message) for message in WITH_TOOLS], "tools": [json.dumps(TOOL)]},
    "bare tool": {"messages": WITH_TOOLS, "tools": [TOOL["function"]]},
    "arguments as text": {
        "messages": [SYSTEM, USER, {**CALLING, "tool_calls": [
            {"function": {"name": "forecast", "arguments": '{"day": "tomorrow", "hours": null}'}}]}, RESULT, ANSWER],
        "tools": [TOOL],
    },
    "earlier spelling": {
        "messages": [{**SYSTEM, "role": "developer"}, USER,
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "content": "dry"}, ANSWER],
        "tools": [TOOL],
    },
    "parts": {
        "messages": [{**SYSTEM, "content": ["Be ", {"type": "text", "text": "brief."}]},
            {"role": "user",
             "content": [{"type": "input_text", "text": "Rain "}, {"type": "text", "text": "tomorrow?"}]},
            CALLING, RESULT, {"role": "assistant", "content": [{"type": "output_text", "text": "No."}]}],
        "tools": [TOOL],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Rain tomorrow?"},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "dry"}, {"from": "gpt", "value": "No."}],
        "system": "Be brief.",
        "tools": json.dumps([TOOL["function"]]),
    },
    "ShareGPT, OpenAI's fields": {"conversations": WITH_TOOLS, "tools": [TOOL]},
    "prompt and completion": {"prompt": WITH_TOOLS[:2], "completion": WITH_TOOLS[2:], "tools": [TOOL]},
    "trailing turns": {"messages": [*WITH_TOOLS, USER, SYSTEM], "tools": [TOOL]},
    "null fields": {
        "messages": [SYSTEM, {**USER, "name": None, "tool_calls": None, "tool_call_id": None}, CALLING,
            {**RESULT, "tool_call_id": None}, {**ANSWER, "tool_calls": [], "reasoning_content": None}],
        "tools": [TOOL], "context": None, "teacher_messages": None, "system": None, "id": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("spelling", list(SAME))
def test_every_spelling_is_the_same_conversation(spelling: str) -> None:
    found = read(**SAME[spelling])
    assert list(found.messages) == WITH_TOOLS
    assert list(found.tools) == [TOOL]
    assert found.teacher_messages is None
    assert found.digest == read(**SAME["as it is"]).digest
    assert found.answer == "No."


def test_a_prompt_and_a_completion_of_text_are_two_turns() -> None:
    assert read(prompt="Rain tomorrow?", completion="No.").messages == (USER, ANSWER)
    assert read(prompt='["a list"]', completion="No.").messages[0]["content"] == '["a list"]'


def test_what_is_beside_the_text_is_kept() -> None:
    calls = [{"id": "1", **CALL}, {"id": "2", **CALL}]
    results = [{**RESULT, "tool_call_id": "2", "name": "forecast"}, {**RESULT, "tool_call_id": "1"}]
    given = [USER, {**CALLING, "tool_calls": calls, "reasoning_content": "Ask."}, *results, ANSWER]
    assert messages_of(*given) == given
    thought = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "Ask."}, {"type": "text", "text": "No."}],
    }
    for turn in (thought, {**ANSWER, "reasoning": "Ask."}, {**ANSWER, "thinking": "Ask."}):
        assert messages_of(USER, turn) == [USER, {**ANSWER, "reasoning_content": "Ask."}]


def test_digests_tell_conversations_apart_and_no_order_of_keys() -> None:
    plain = read(messages=WITH_TOOLS, tools=[TOOL])
    turned = json.loads(json.dumps(WITH_TOOLS), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert read(messages=turned, tools=[TOOL]).digest == plain.digest
    assert plain.digest == "9befbae180dc0c89a57ddb34a04abc10"  # the same in every process and on every machine
    others = [
        read(messages=WITH_TOOLS),
        read(messages=WITH_TOOLS[1:], tools=[TOOL]),
        read(messages=[*WITH_TOOLS[:-1], {**ANSWER, "content": "no."}], tools=[TOOL]),
    ]
    assert len({plain.digest, *(other.digest for other in others)}) == 4
    taught = read(messages=WITH_TOOLS, tools=[TOOL], context="It never rains.")
    assert taught.digest == plain.digest
    assert taught.digest_with_teacher != plain.digest_with_teacher


def test_a_context_stands_before_the_conversations_own_system_message() -> None:
    own = read(messages=[SYSTEM, USER, ANSWER], context="It never rains.")
    assert own.teacher_messages == ({"role": "system", "content": "It never rains.\n\nBe brief."}, USER, ANSWER)
    none = read(messages=[USER, ANSWER], context="It never rains.")
    assert none.teacher_messages == ({"role": "system", "content": "It never rains."}, USER, ANSWER)
    assert none.messages == (USER, ANSWER)


def test_teacher_messages_are_read_as_messages_are() -> None:
    theirs = [
        {"from": "system", "value": "Rubric"},
        {"from": "human", "value": "Rain?"},
        {"from": "gpt", "value": "No."},
    ]
    found = read(messages=[USER, ANSWER], teacher_messages=[*theirs, {"from": "human", "value": "And?"}])
    assert found.teacher_messages == (
        {"role": "system", "content": "Rubric"}, {"role": "user", "content": "Rain?"}, ANSWER,
    )  # fmt: skip


def chat(*messages: Any, **row: Any) -> dict[str, Any]:
    return {"messages": list(messages), **row}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no known column": (
        {"text": "a", "label": 1},
        "expected a column messages, or conversations, or prompt and completion, got text",
    ),
    "messages no list": ({"messages": 5}, "messages: expected a list, got a number"),
    "messages text": ({"messages": "hello"}, "messages: expected JSON, got text that is not: Expecting value"),
    "message no object": (chat(USER, 5), r"messages\[1\]: expected an object, got a number"),
    "no role": (
        chat({"content": "a"}, ANSWER),
        r"messages\[0\].role: expected one of system, user, assistant, tool, got None",
    ),
    "unknown role": (
        chat(USER, {"role": "critic", "content": "a"}),
        r"messages\[1\].role: expected one of .*, got 'critic'",
    ),
    "unknown sender": (
        {"conversations": [{"from": "cat", "value": "a"}]},
        r"conversations\[0\].from: expected one of .*, got 'cat'",
    ),
    "content a number": (
        chat(USER, {"role": "assistant", "content": 5}),
        r"messages\[1\].content: expected text, got a number",
    ),
    "content an object": (
        chat({"role": "user", "content": {}}, ANSWER),
        r"messages\[0\].content: expected text, got an object",
    ),
    "part a number": (
        chat({"role": "user", "content": [5]}, ANSWER),
        r"messages\[0\].content\[0\]: expected an object, got a number",
    ),
    "part without type": (
        chat({"role": "user", "content": [{"x": 1}]}, ANSWER),
        r"messages\[0\].content\[0\].type: expected text, got None",
    ),
    "part's text": (
        chat({"role": "user", "content": [{"type": "text", "text": 5}]}, ANSWER),
        r"messages\[0\].content\[0\].text: expected text, got a number",
    ),
    "result first": (
        chat(RESULT, ANSWER),
        r"messages\[0\]: expected a tool message only after an assistant turn with tool_calls",
    ),
    "result uncalled": (
        chat(USER, ANSWER, RESULT, ANSWER),
        r"messages\[2\]: expected a tool message only after an assistant turn",
    ),
    "late result": (chat(USER, CALLING, USER, RESULT, ANSWER), r"messages\[3\]: expected a tool message only after"),
    "result's id": (
        chat(USER, {**CALLING, "tool_calls": [{"id": "1", **CALL}]}, {**RESULT, "tool_call_id": "2"}, ANSWER),
        r"messages\[2\].tool_call_id: expected one of 1, got '2'",
    ),
    "unknown tool": (
        chat(USER, CALLING, RESULT, ANSWER, tools=[{"type": "function", "function": {"name": "book"}}]),
        r"messages\[1\].tool_calls\[0\]: expected one of the row's tools \(book\), got 'forecast'",
    ),
    "tools no list": (chat(USER, ANSWER, tools={"name": "x"}), "tools: expected a list, got an object"),
    "tool without name": (
        chat(USER, ANSWER, tools=[{"function": {}}]),
        r"tools\[0\].function.name: expected text, got null",
    ),
    "tool no function": (
        chat(USER, ANSWER, tools=[{"type": "function"}]),
        r"tools\[0\].function: expected an object, got null",
    ),
    "call without name": (
        chat(USER, {**CALLING, "tool_calls": [{"function": {"arguments": {}}}]}, ANSWER),
        r"messages\[1\].tool_calls\[0\].function.name: expected text, got null",
    ),
    "arguments a list": (
        chat(USER, {**CALLING, "tool_calls": [{"function": {"name": "x", "arguments": [1]}}]}, ANSWER),
        r"messages\[1\].tool_calls\[0\].function.arguments: expected an object, got a list",
    ),
    "arguments no JSON": (
        chat(USER, {**CALLING, "tool_calls": [{"function": {"name": "x", "arguments": "{day: 1}"}}]}, ANSWER),
        r"messages\[1\].tool_calls\[0\].function.arguments: expected JSON, got text that is not: Expecting",
    ),
    "calls no list": (
        chat(USER, {**CALLING, "tool_calls": 5}, ANSWER),
        r"messages\[1\].tool_calls: expected a list, got a number",
    ),
    "reasoning a list": (
        chat(USER, {**ANSWER, "reasoning_content": []}),
        r"messages\[1\].reasoning_content: expected text, got a list",
    ),
    "prompt a number": ({"prompt": 5, "completion": "a"}, "prompt: expected a list, got a number"),
    "context no text": (chat(USER, ANSWER, context=["a"]), "context: expected text, got a list"),
    "context twice": (
        chat(USER, ANSWER, context="a", teacher_messages=[USER, ANSWER]),
        "expected one of the columns context and teacher_messages, got both",
    ),
    "other answer": (
        chat(USER, ANSWER, USER, ANSWER, teacher_messages=[USER, ANSWER, USER, {**ANSWER, "content": "Yes."}]),
        "teacher_messages: expected the same assistant turns as messages, but turn 2 differs",
    ),

    "fewer answers": (
        chat(USER, ANSWER, USER, ANSWER, teacher_messages=[USER, ANSWER]),
        "teacher_messages: expected the 2 assistant turns of messages, got 1",
    ),
    "no answers": (
        chat(USER, ANSWER, teacher_messages=[]),
        "teacher_messages: expected the 1 assistant turns of messages, got 0",
    ),
    "teacher's role": (
        chat(USER, ANSWER, teacher_messages=[{"role": "x", "content": ""}, ANSWER]),
        r"teacher_messages\[0\].role: expected one of",
    ),
    "system no text": (chat(USER, ANSWER, system=5), "system: expected text, got a number"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_row_is_one_line_that_names_the_field(fault: str) -> None:
    row, says = BROKEN[fault]
    with pytest.raises(TaskError, match=f"^{says}") as caught:
        read_conversation(row)
    assert "\n" not in str(caught.value)


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
UNUSABLE: dict[str, dict[str, Any]] = {
    "no messages": chat(),
    "null": {"messages": None},
    "no assistant turn": chat(SYSTEM, USER),
    "empty answer": chat(USER, {"role": "assistant", "content": " \n"}),
    "null answer": chat(USER, {"role": "assistant", "content": None}),
    "empty answer before others": chat(USER, {"role": "assistant", "content": ""}, USER, ANSWER),
    "thought alone": chat(USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n"}),
    "thought unfinished": chat(USER, {"role": "assistant", "content": "<think>\nHm."}),
    "empty completion": {"prompt": "a", "completion": None},
    "image": chat({"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]}, ANSWER),
    "half a character": chat({"role": "user", "content": "\ud83d"}, ANSWER),
    "half a character in a call": chat(
        USER, {**CALLING, "tool_calls": [{"function": {"name": "x", "arguments": {"\ud83d": 1}}}]}, ANSWER
    ),
    "half a character for the teacher": chat(USER, ANSWER, context="\udcff"),
}


@pytest.mark.parametrize("row", UNUSABLE.values(), ids=list(UNUSABLE))
def test_a_row_without_anything_to_learn_is_none(row: dict[str, Any]) -> None:
    assert read_conversation(row) is None


def test_a_result_may_follow_a_call_written_as_text() -> None:
    calling = {"role": "assistant", "content": '<tool_call>{"name": "forecast"}</tool_call>'}
    assert messages_of(USER, calling, RESULT, RESULT, ANSWER) == [USER, calling, RESULT, RESULT, ANSWER]
