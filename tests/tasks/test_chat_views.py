"""What a teacher reads of a conversation under each view: the student's spans, turn by turn, behind other contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from logitbank.tasks import Example, TaskError
from logitbank.tasks.encoding import ExampleEncoder, TeacherSequence
from logitbank.tasks.prompts import PromptEncoder
from tests import tiny
from tests.tasks.dialogues import CHAT, call, chat, real_chats, student, teacher, template_ids, turns
from tests.tasks.test_learnt_turns import CHATML, LOOK, THINKING, TOOLS, TWO

OTHER = CHATML.replace("{{ m.role }}\n", "{{ m.role }}:\n").replace("assistant\n", "assistant:\n")
KEEN = [{"role": "system", "content": "Count keenly."}, *TWO[1:]]


def prompts(template: str) -> PromptEncoder:
    return PromptEncoder(tiny.byte_tokenizer(template, control=("<end>",)))


def text(examples: ExampleEncoder, seen: TeacherSequence | None) -> str:
    assert seen is not None
    return str(examples.encoder.tokenizer.decode(seen.sequence.ids))


def spans_of(sequences: Sequence[Any]) -> list[list[int]]:
    return [part.sequence.answer_ids.tolist() for part in sequences]


def check_contexts(tokenizer: Any, messages: Sequence[Any], tools: Sequence[Any], seen: Sequence[Any]) -> None:
    """Before every span stands what the template writes for the messages before that turn."""
    asked = chat(messages, tools)
    at = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    found = [part.sequence.ids[: span.start].tolist() for part in seen for span in part.sequence.spans]
    expected = [template_ids(tokenizer, asked, index, prompt=True) for index in at]
    assert sorted(found) == sorted(expected[len(expected) - len(found) :])


def test_zeroshot_is_the_student_s_own_sequence() -> None:
    examples = ExampleEncoder(prompts(CHATML))
    (part,) = student(examples, chat(TWO))
    length = len(part.sequence)
    assert examples.teacher("zeroshot", CHAT, chat(TWO), part, [], max_tokens=length - 1) is None
    seen = examples.teacher("zeroshot", CHAT, chat(TWO), part, [], max_tokens=length)
    assert seen is not None
    assert seen.sequence is part.sequence
    assert seen.demonstrations == 0


@pytest.mark.parametrize(("own", "theirs"), [(CHATML, OTHER), (THINKING, CHATML), (CHATML, THINKING)])
def test_a_teacher_with_a_template_of_its_own(own: str, theirs: str) -> None:
    examples = ExampleEncoder(prompts(own), prompts(theirs))
    parts = student(examples, chat(TWO))
    seen = teacher(examples, "zeroshot", chat(TWO))
    assert spans_of(seen) == spans_of(parts)
    assert [part.turns for part in parts] == ([(-2,), (-1,)] if THINKING in (own, theirs) else [(-2, -1)])
    assert [part.suffix for part in parts] == (["#1", "#2"] if THINKING in (own, theirs) else [""])
    check_contexts(examples.teacher_encoder.tokenizer, TWO, (), seen)  # type: ignore[union-attr]
    check_contexts(examples.encoder.tokenizer, TWO, (), parts)


def test_a_teacher_that_ends_turns_differently_reads_its_own_ends_and_answers_the_student_s() -> None:
    examples = ExampleEncoder(prompts(CHATML), prompts(CHATML.replace("<|im_end|>", "<end>")))
    parts = student(examples, chat(TWO))
    seen = teacher(examples, "zeroshot", chat(TWO))
    assert [part.suffix for part in parts] == ["#1", "#2"]
    assert spans_of(seen) == spans_of(parts)
    assert text(examples, seen[1]) == (
        "<|im_start|>system\nCount.<end>\n<|im_start|>user\nOne?<end>\n<|im_start|>assistant\n1.<end>\n"
        "<|im_start|>user\nTwo?<end>\n<|im_start|>assistant\n2.<|im_end|>"
    )


@pytest.mark.parametrize("messages", [TWO, TWO[:3]], ids=["shared", "single"])
def test_a_teacher_that_writes_turns_with_other_tokens_is_named(messages: list[Any]) -> None:
    shouts = CHATML.replace("{{ m.content }}", "{{ '!' if m.role == 'assistant' }}{{ m.content }}")
    examples = ExampleEncoder(prompts(CHATML), prompts(shouts))
    with pytest.raises(TaskError, match=r"^chat/und/train/0: teacher.model: .* writes '!' where the student's has '1'"):
        teacher(examples, "zeroshot", chat(messages))


@pytest.mark.parametrize("theirs", [None, OTHER])
def test_context_shows_the_teacher_more(theirs: str | None) -> None:
    examples = ExampleEncoder(prompts(CHATML), prompts(theirs) if theirs else None)
    example = chat(TWO, teacher=[*turns("Zero?", "0."), *KEEN[1:]])
    parts = student(examples, example)
    seen = teacher(examples, "context", example)
    assert spans_of(seen) == spans_of(parts)
    check_contexts(
        (examples.teacher_encoder or examples.encoder).tokenizer, [*turns("Zero?", "0."), *KEEN[1:]], (), seen
    )
    length = len(seen[0].sequence)  # type: ignore[union-attr]
    assert teacher(examples, "context", example, max_tokens=length) == seen
    assert teacher(examples, "context", example, max_tokens=length - 1) == [None]


def test_context_needs_one_with_the_same_turns() -> None:
    examples = ExampleEncoder(prompts(CHATML))
    with pytest.raises(TaskError, match=r"^chat/und/train/0: --view context: .* got none; give chat.context=FILE"):
        teacher(examples, "context", chat(TWO))
    with pytest.raises(TaskError, match=r"^chat/und/train/0: teacher_messages: expected 2 assistant turns, got 1"):
        student(examples, chat(TWO, teacher=TWO[:3]))
    with pytest.raises(TaskError, match=r"writes '3' where the student's has '2'"):
        teacher(examples, "context", chat(TWO, teacher=[*TWO[:-1], {"role": "assistant", "content": "3."}]))


def test_turns_that_differ_in_the_teacher_s_context_are_split_for_the_student_too() -> None:
    """A template that shows earlier thinking as long as there is no system prompt."""
    examples = ExampleEncoder(prompts(THINKING.replace("loop.last", "(loop.last or messages[0].role == 'user')")))
    assert [part.turns for part in student(examples, chat(TWO[1:]))] == [(-2, -1)]
    parts = student(examples, chat(TWO[1:], teacher=TWO))
    assert [part.turns for part in parts] == [(-2,), (-1,)]
    assert spans_of(teacher(examples, "context", chat(TWO[1:], teacher=TWO))) == spans_of(parts)
    messages = chat(TWO[1:])
    late = ExampleEncoder(prompts(THINKING.replace("loop.last", "(loop.last or messages | length < 5)")))
    (part,) = student(late, messages)
    with pytest.raises(TaskError, match="the chat template renders these turns differently after demonstrations"):
        late.teacher("fewshot", CHAT, messages, part, [chat(TWO[1:3])], max_tokens=9999)


SHOWN = [
    chat(turns("Ten?", "10.", system="Count."), name="same prompt"),
    chat(
        [*turns("Look up.", system="Look."), call("look"), {"role": "tool", "content": "sky"}, *turns("", "Sky.")[1:]],
        [LOOK],
    ),
]


def test_demonstrations_are_earlier_turns() -> None:
    examples = ExampleEncoder(prompts(TOOLS))
    (seen,) = teacher(examples, "fewshot", chat(TWO), SHOWN)
    assert seen is not None
    assert seen.demonstrations == 2
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    shown = [("system", "Count."), ("user", "Ten?"), ("assistant", "10."), ("user", "Look.\n\nLook up.")]
    shown += [("assistant", 'CALL {"name": "look", "arguments": {}}'), ("tool", "sky"), ("assistant", "Sky.")]
    shown += [("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2.")]
    tools = '{"type": "function", "function": {"name": "look", "parameters": {}}}\n'
    assert text(examples, seen) + "\n" == tools + "".join(turn(*message) for message in shown)
    assert spans_of([seen]) == spans_of(student(examples, chat(TWO)))
    prompt = examples.generation(CHAT, chat(TWO), SHOWN, max_tokens=9999)
    assert prompt is not None
    assert prompt.demonstrations == 2
    assert prompt.ids == seen.sequence.ids[: seen.sequence.spans[-1].start].tolist()


def test_the_conversation_s_own_tool_wins_over_a_demonstration_s() -> None:
    own = {"type": "function", "function": {"name": "look", "description": "up", "parameters": {}}}
    examples = ExampleEncoder(prompts(TOOLS))
    (seen,) = teacher(examples, "fewshot", chat(TWO, [own]), SHOWN)
    assert text(examples, seen).count('"name": "look"') == 2  # described once, called once
    assert text(examples, seen).count('"description": "up"') == 1


def test_demonstrations_go_from_the_front_and_then_the_conversation() -> None:
    examples = ExampleEncoder(prompts(TOOLS))
    lengths = [len(teacher(examples, "fewshot", chat(TWO), SHOWN[start:])[0].sequence) for start in range(3)]  # type: ignore[union-attr]
    for room, kept in ((lengths[0], 2), (lengths[0] - 1, 1), (lengths[1] - 1, 0), (lengths[2], 0)):
        (seen,) = teacher(examples, "fewshot", chat(TWO), SHOWN, max_tokens=room)
        assert seen is not None
        assert (seen.demonstrations, len(seen.sequence)) == (kept, lengths[2 - kept])
    assert teacher(examples, "fewshot", chat(TWO), SHOWN, max_tokens=lengths[2] - 1) == [None]


def test_a_demonstration_that_the_template_refuses_is_left_out() -> None:
    examples = ExampleEncoder(
        prompts("{% if messages | length > 7 %}{{ raise_exception('long') }}{% endif %}" + CHATML)
    )
    (seen,) = teacher(examples, "fewshot", chat(TWO), [SHOWN[0], SHOWN[0]])
    assert seen is not None
    assert seen.demonstrations == 1
    assert examples.counts == {}


def test_answers_cannot_be_shuffled() -> None:
    with pytest.raises(
        TaskError, match=r"^--view shuffled_answers: expected a task with one answer, got chat; use zero"
    ):
        teacher(ExampleEncoder(prompts(CHATML)), "shuffled_answers", chat(TWO), SHOWN)


def test_generation_behind_the_whole_conversation() -> None:
    examples = ExampleEncoder(prompts(THINKING))
    expected = template_ids(examples.encoder.tokenizer, chat(TWO), 4, prompt=True)
    prompt = examples.generation(CHAT, chat(TWO), [], max_tokens=len(expected))
    assert prompt is not None
    assert prompt.ids == expected
    assert examples.generation(CHAT, chat(TWO), [], max_tokens=len(expected) - 1) is None


@pytest.mark.parametrize("name", ["qwen3", "llama-3.2"])
def test_real_conversations_under_every_view(shared: Path, real_tokenizer: Callable[..., Any], name: str) -> None:
    tokenizer = real_tokenizer(name)
    examples = ExampleEncoder(PromptEncoder(tokenizer))
    _, first, shown = real_chats(shared, "sgd", 3)
    conversation = first.fields["conversation"]
    more = [{"role": "system", "content": "Be brief and exact. " * 5}, *conversation.messages[1:]]
    example: Example = chat(conversation.messages, conversation.tools, teacher=more)
    parts = student(examples, example)
    check_contexts(tokenizer, conversation.messages, conversation.tools, parts)
    for view, demonstrations in (("zeroshot", []), ("context", []), ("fewshot", [shown])):
        seen = teacher(examples, view, example, demonstrations)
        assert spans_of(seen) == spans_of(parts)
        if view == "context":
            check_contexts(tokenizer, more, conversation.tools, seen)
