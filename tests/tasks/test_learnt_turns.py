"""Which tokens of conversations are learned, template by template: markers, thinking, refusals, lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from logitbank.tasks import Example, TaskError
from logitbank.tasks.encoding import ExampleEncoder, StudentSequence
from logitbank.tasks.prompts import PromptEncoder
from logitbank.tasks.settings import ChatSettings
from tests import tiny
from tests.tasks.dialogues import call, chat, student, template_ids, turns

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
# As Qwen3's: thinking and its empty block are shown in the last turn alone.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    + PROMPT.replace("{% endif %}", "")
    + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TOOLS = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}CALL {{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
) + PROMPT
LOOK = {"type": "function", "function": {"name": "look", "parameters": {}}}
TWO = turns("One?", "1.", "Two?", "2.", system="Count.")


def encoder(template: str | None, *, thinking: str = "drop", which: str = "all", **tokenizer: Any) -> ExampleEncoder:
    made = tiny.byte_tokenizer(template, **tokenizer)
    return ExampleEncoder(PromptEncoder(made), chat=ChatSettings(turns=which, thinking=thinking))


def answers(examples: ExampleEncoder, parts: Sequence[StudentSequence]) -> list[list[str]]:
    """What is learned, span by span."""
    decode = examples.encoder.tokenizer.decode
    return [[decode(part.sequence.ids[start : start + n]) for start, n in part.sequence.spans] for part in parts]


def texts(examples: ExampleEncoder, parts: Sequence[StudentSequence]) -> list[str]:
    return [examples.encoder.tokenizer.decode(part.sequence.ids) for part in parts]


def test_all_turns_share_the_rendering_of_the_whole() -> None:
    examples = encoder(CHATML)
    (part,) = student(examples, chat(TWO))
    assert texts(examples, [part]) == [
        "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n1.<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n2.<|im_end|>"
    ]
    assert answers(examples, [part]) == [["1.<|im_end|>", "2.<|im_end|>"]]
    assert (part.suffix, part.turns, examples.counts) == ("", (-2, -1), {})


@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_only_the_last_turn(template: str) -> None:
    examples = encoder(template, which="last")
    (part,) = student(examples, chat(TWO))
    assert answers(examples, [part]) == [["2.<|im_end|>"]]
    assert (part.suffix, part.turns) == ("", (-1,))
    assert part.sequence.prompt_ids.tolist() == template_ids(examples.encoder.tokenizer, chat(TWO), 4, prompt=True)


def test_turns_that_render_differently_once_others_follow_are_examples_of_their_own() -> None:
    examples = encoder(THINKING)
    parts = student(examples, chat(TWO))
    assert [part.suffix for part in parts] == ["#1", "#2"]
    assert answers(examples, parts) == [["1.<|im_end|>"], ["2.<|im_end|>"]]
    for part, stop in zip(parts, (2, 4), strict=True):
        assert part.sequence.prompt_ids.tolist() == template_ids(
            examples.encoder.tokenizer, chat(TWO), stop, prompt=True
        )
    assert examples.counts == {
        "conversations split, because the template renders turns differently once others follow": 1,
        "examples made of split conversations": 2,
    }


def test_turns_of_a_split_conversation_that_agree_share_a_sequence() -> None:
    """Thinking is dropped behind the next user's turn only, so that a tool call and what follows it agree."""
    kept = THINKING.replace("loop.last", "not (messages[loop.index:] | selectattr('role', 'eq', 'user') | list)")
    examples = encoder(
        kept.replace("m.role == 'assistant'", "m.role == 'assistant' and m.reasoning_content"), thinking="keep"
    )
    thought = {"reasoning_content": "hm"}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", **thought},
        {"role": "system", "content": "c"},
        {"role": "assistant", "content": "d", **thought},
        *turns("e", "f"),
    ]
    parts = student(examples, chat(messages))
    assert [(part.suffix, part.turns) for part in parts] == [("#2", (-3, -2)), ("#3", (-1,))]
    assert answers(examples, parts) == [
        ["<think>\nhm\n</think>\n\nb<|im_end|>", "<think>\nhm\n</think>\n\nd<|im_end|>"],
        ["f<|im_end|>"],
    ]


MARK, UNMARK = "{% generation %}", "{% endgeneration %}"
BY_ROLE = "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT{% else %}" + TURN + "{% endif %}{% endfor %}"


def test_markers_of_the_template_agree_with_its_own_mask() -> None:
    marked = "<|im_start|>assistant\n" + MARK + "{{ m.content }}<|im_end|>" + UNMARK + "\n"
    examples = encoder(BY_ROLE.replace("ASSISTANT", marked) + PROMPT)
    (part,) = student(examples, chat(TWO))
    own = examples.encoder.tokenizer.apply_chat_template(TWO, return_assistant_tokens_mask=True, return_dict=True)
    assert part.sequence.ids.tolist() == own["input_ids"]
    assert part.sequence.answer_mask.tolist() == [bool(flag) for flag in own["assistant_masks"]]


@pytest.mark.parametrize(
    "turn",
    [
        MARK + "<|im_start|>assistant\n{{ m.content }}<|im_end|>\n" + UNMARK,
        "<|im_start|>assistant\n" + MARK + "{{ m.content }}" + UNMARK + "<|im_end|>\n",
    ],
    ids=["header inside", "end of turn outside"],
)
def test_markers_cover_no_more_and_no_less_than_what_is_generated(turn: str) -> None:
    examples = encoder(BY_ROLE.replace("ASSISTANT", turn) + PROMPT)
    assert answers(examples, student(examples, chat(TWO))) == [["1.<|im_end|>", "2.<|im_end|>"]]


def test_markers_choose_turns_and_stand_in_for_a_generation_prompt() -> None:
    last = (
        "{% if loop.last %}"
        + MARK
        + "{{ m.content }}<|im_end|>"
        + UNMARK
        + "{% else %}{{ m.content }}<|im_end|>{% endif %}"
    )
    examples = encoder(BY_ROLE.replace("ASSISTANT", "<|im_start|>assistant\n" + last + "\n") + PROMPT)
    parts = student(examples, chat(TWO))  # each turn is the last when the model meets it
    assert answers(examples, parts) == [["1.<|im_end|>", "2.<|im_end|>"]]
    never = last.replace("loop.last", "loop.first")
    examples = encoder(BY_ROLE.replace("ASSISTANT", "<|im_start|>assistant\n" + never + "\n") + PROMPT)
    assert student(examples, chat(TWO)) == []
    assert examples.counts == {"conversations without a turn to learn": 1}
    other = "<|im_start|>bot\n" + MARK + "{{ m.content }}<|im_end|>" + UNMARK + "\n"
    examples = encoder(BY_ROLE.replace("ASSISTANT", other) + PROMPT)
    assert answers(examples, student(examples, chat(TWO))) == [["1.<|im_end|>", "2.<|im_end|>"]]


@pytest.mark.parametrize("marks", [("", ""), ("{% if loop.index < 4 %}" + MARK, UNMARK + "{% endif %}")])
def test_a_template_without_a_way_to_its_turns_is_named(marks: tuple[str, str]) -> None:
    """Marks of an earlier turn lead to no later one."""
    content = marks[0] + "{{ m.content }}<|im_end|>" + marks[1]
    turn = content if not marks[0] else content.replace("{% endif %}", "{% else %}{{ m.content }}<|im_end|>{% endif %}")
    examples = encoder(BY_ROLE.replace("ASSISTANT", f"<|im_start|>bot\n{turn}\n") + PROMPT)
    with pytest.raises(TaskError, match=r"^chat/und/train/0: .* after '.*assistant\\n', got '.*bot\\n[12]\.<") as info:
        student(examples, chat(TWO))
    assert "\n" not in str(info.value)


THOUGHT = {"role": "assistant", "content": "2.", "reasoning_content": "One and one."}
SPELLED = {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\n2."}


@pytest.mark.parametrize("message", [THOUGHT, SPELLED], ids=["field", "text"])
def test_thinking_is_kept_or_dropped(message: dict[str, Any]) -> None:
    example = chat([*turns("Two?"), message])
    for template, plain in ((THINKING, "2.<|im_end|>"), (CHATML, "2.<|im_end|>")):
        drops = encoder(template)
        assert answers(drops, student(drops, example)) == [[plain]]
        assert drops.counts == {"conversations with thinking dropped": 1}
        keeps = encoder(template, thinking="keep")
        assert answers(keeps, student(keeps, example)) == [["<think>\nOne and one.\n</think>\n\n" + plain]]
        assert keeps.counts == {}


def test_thinking_that_the_template_drops_is_an_error() -> None:
    drops = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    reads = drops.replace("{% for", "{% set ignored = messages[0].reasoning_content %}{% for", 1)
    for template in (drops, reads):
        with pytest.raises(TaskError, match=r"^chat/und/train/0: chat.thinking: .* this one drops it; use"):
            student(encoder(template, thinking="keep"), chat([*turns("Two?"), THOUGHT]))


def test_thinking_tags_are_control_tokens_only_where_they_are_thinking() -> None:
    control = ("<think>", "</think>")
    examples = encoder(CHATML, thinking="keep", control=control)
    message = {"role": "assistant", "content": "<think>", "reasoning_content": "Is </think> text?"}
    (part,) = student(examples, chat([*turns("What is <think>?"), message]))
    tags = examples.encoder.tokenizer.convert_tokens_to_ids(list(control))
    assert [token for token in part.sequence.ids if token in tags] == tags
    assert [token for token in part.sequence.answer_ids if token in tags] == tags
    assert answers(examples, [part]) == [["<think>\nIs </think> text?\n</think>\n\n<think><|im_end|>"]]


def test_a_token_that_straddles_prompt_and_answer(real_tokenizer: Callable[..., Any]) -> None:
    """Qwen3's tokenizer has one token for two newlines, which no generation prompt ends in half of."""
    made = PromptEncoder(real_tokenizer("qwen3", CHATML))
    examples = ExampleEncoder(made)
    messages = turns("One?", "1.", "Two?", "\n2.", "Three?", "3.")
    parts = student(examples, chat(messages))
    assert [(part.suffix, part.turns) for part in parts] == [("#2", (-2,)), ("#3", (-3, -1))]
    prompt = template_ids(made.tokenizer, chat(messages), 3, prompt=True)
    assert parts[0].sequence.ids.tolist() == prompt + made.encode_answer("\n2.")
    assert parts[0].sequence.prompt_ids.tolist() == prompt
    assert parts[1].sequence.ids.tolist() == template_ids(made.tokenizer, chat(messages), 6, prompt=False)[:-1]


def test_a_space_of_the_generation_prompt_belongs_to_the_answer(real_tokenizer: Callable[..., Any]) -> None:
    template = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}<|im_end|>{% endfor %}" + PROMPT
    made = PromptEncoder(real_tokenizer("qwen3", template.replace("<|im_start|>assistant\n", "ASSISTANT: ")))
    (part,) = student(ExampleEncoder(made), chat(TWO))
    assert part.sequence.ids.tolist() == template_ids(made.tokenizer, chat(TWO), 9, prompt=False)
    assert part.sequence.answer_ids.tolist() == made.encode_answer("1.") + made.encode_answer("2.")


def test_a_template_without_an_end_of_turn_gets_one() -> None:
    examples = encoder(CHATML.replace("<|im_end|>", ""))
    parts = student(examples, chat(TWO))
    assert answers(examples, parts) == [["1.</s>"], ["2.</s>"]]
    assert texts(examples, parts)[1].endswith("assistant\n1.\n<|im_start|>user\nTwo?\n<|im_start|>assistant\n2.</s>")


def test_white_space_and_further_tokens_behind_the_end_of_turn_are_not_learned() -> None:
    examples = encoder(CHATML + "{% if not add_generation_prompt %}</s>{% endif %}")
    (part,) = student(examples, chat(TWO))
    assert answers(examples, [part]) == [["1.<|im_end|>", "2.<|im_end|>"]]


@pytest.mark.parametrize("bos", [True, False])
def test_plain_text_without_a_template(bos: bool) -> None:
    examples = encoder(None, bos=bos)
    (part,) = student(examples, chat(TWO))
    opening = "<s>" if bos else ""
    assert texts(examples, [part]) == [f"{opening}Count.\n\nOne?\n1.</s>\n\nTwo?\n2.</s>"]
    assert answers(examples, [part]) == [["1.</s>", "2.</s>"]]
    with pytest.raises(TaskError, match="does not show tools: expected 'look'"):
        student(examples, chat(TWO, [LOOK]))


def test_without_a_system_role_its_text_opens_the_first_user_turn() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    examples = encoder(refuses)
    (part,) = student(examples, chat(TWO))
    assert texts(examples, [part])[0].startswith("<|im_start|>user\nCount.\n\nOne?<|im_end|>")
    greeted = [{"role": "system", "content": "Greet."}, {"role": "assistant", "content": "Hello!"}]
    assert texts(examples, student(examples, chat(greeted)))[0].startswith("<|im_start|>user\nGreet.<|im_end|>")


def test_conversations_that_the_template_refuses_are_skipped_and_counted() -> None:
    twice = (
        "{% if messages | selectattr('role', 'eq', 'system') | list | length > 1 %}{{ raise_exception('one\nonly') }}"
    )
    examples = encoder(twice + "{% endif %}" + CHATML)
    second = [*TWO[:3], {"role": "system", "content": "Faster."}, *TWO[3:]]
    assert [len(student(examples, chat(messages))) for messages in (TWO, second, second)] == [1, 0, 0]
    assert examples.counts == {"conversations left out, because the chat template rejects it: one": 2}
    loses = (
        "{% for m in messages %}{% if loop.first or m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
    )
    examples = encoder(loses)
    assert [len(student(examples, chat(messages))) for messages in (TWO, second)] == [1, 0]
    assert examples.counts == {"conversations left out, because the chat template does not show message 4 (system)": 1}
    examples = encoder("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + loses)
    assert student(examples, chat(second)) == []
    assert examples.counts == {"conversations left out, because the chat template does not show message 4 (system)": 1}


def with_tool(*calls: dict[str, Any]) -> Example:
    asks = {**call("look"), "tool_calls": [item["tool_calls"][0] for item in calls]}
    found = {"role": "tool", "content": 'a "star"'}
    return chat([*turns("What is there?"), asks, found, {"role": "assistant", "content": "A star."}], [LOOK])


def test_tools_their_calls_and_their_results() -> None:
    examples = encoder(TOOLS)
    (part,) = student(examples, with_tool(call("look", at="sky")))
    assert answers(examples, [part]) == [
        ['CALL {"name": "look", "arguments": {"at": "sky"}}<|im_end|>', "A star.<|im_end|>"]
    ]
    assert texts(examples, [part])[0].startswith('{"type": "function", "function": {"name": "look"')
    escaped = encoder(TOOLS.replace("{{ m.content }}", "{{ m.content | tojson if m.role == 'tool' else m.content }}"))
    assert len(student(escaped, with_tool(call("look")))) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{{ t | tojson }}", "", "does not show tools: expected 'look' in the prompt"),
        ("CALL {{ c.function | tojson }}", "", "does not show tool calls: expected 2 of 'look' in an assistant turn"),
        ("m.tool_calls or []", "(m.tool_calls or [])[:1]", "does not show tool calls: expected 2 of 'look'"),
        (
            "{{ m.content }}",
            "{{ m.content if m.role != 'tool' }}",
            "does not show tool messages: expected 'a \"star\"'",
        ),
    ],
)
def test_a_template_that_hides_tools_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(TaskError, match=f"^chat/und/train/0: the chat template {message}"):
        student(encoder(TOOLS.replace(old, new)), with_tool(call("look"), call("look")))


def test_long_conversations_are_cut_at_turns_from_the_end() -> None:
    example = chat(turns("One?", "1.", "Two?", "2.", "Three?", "3."))
    for template in (CHATML, THINKING):
        whole = student(encoder(template), example)
        stops = sorted(span.stop for part in whole for span in part.sequence.spans)
        for room, kept in ((stops[2], 3), (stops[2] - 1, 2), (stops[1], 2), (stops[1] - 1, 1), (stops[0], 1)):
            examples = encoder(template)
            parts = student(examples, example, max_tokens=room)
            assert sorted(number for part in parts for number in part.turns) == [-3, -2, -1][:kept]
            assert max(len(part.sequence) for part in parts) == stops[kept - 1]
            assert [part.suffix for part in parts] == [part.suffix for part in whole][: len(parts)]
            cut = {"conversations cut for length": 1, "assistant turns cut for length": 3 - kept} if kept < 3 else {}
            assert {name: count for name, count in examples.counts.items() if "cut" in name} == cut
        examples = encoder(template)
        assert student(examples, example, max_tokens=stops[0] - 1) == []
        assert examples.counts["conversations left out, because the first turn is too long"] == 1
    last = encoder(CHATML, which="last")
    assert student(last, example, max_tokens=stops[2] - 40) == []


def test_an_opening_assistant_turn_is_context() -> None:
    examples = encoder(CHATML)
    hello = {"role": "assistant", "content": "Hello!"}
    (part,) = student(examples, chat([hello, *turns("One?", "1.")]))
    assert answers(examples, [part]) == [["1.<|im_end|>"]]
    assert texts(examples, [part])[0].startswith("<|im_start|>assistant\nHello!<|im_end|>")
    assert student(examples, chat([hello])) == []
    assert examples.counts == {"opening assistant turns, not learned": 2, "conversations without a turn to learn": 1}


def test_dates_stand() -> None:
    examples = encoder("{{ strftime_now('%d %b %Y') }}{{ date_string }}" + CHATML)
    (part,) = student(examples, chat(TWO))
    assert texts(examples, [part])[0].startswith("26 Jul 202426 Jul 2024<|im_start|>")


def test_turns_that_nothing_separates_do_not_share_a_sequence() -> None:
    examples = encoder("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    parts = student(examples, chat([*turns("a", "b"), {"role": "assistant", "content": "c"}]))
    assert answers(examples, parts) == [["b<|im_end|>"], ["c<|im_end|>"]]
    assert texts(examples, parts) == ["a<|im_end|>b<|im_end|>", "a<|im_end|>b<|im_end|>c<|im_end|>"]
