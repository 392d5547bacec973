"""Examples as sequences: one answer behind a prompt, for the student, its teacher, and generation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from logitbank.sequences import AnsweredSequence
from logitbank.tasks import TASKS, Example
from logitbank.tasks.encoding import ExampleEncoder, StudentSequence
from logitbank.tasks.prompts import PromptEncoder
from tests import tiny

NLI = TASKS["nli"]
OTHER_TEMPLATE = tiny.CHAT_TEMPLATE.replace("{{ m.role }}\n", "{{ m.role }}:\n").replace("assistant\n", "assistant:\n")


def nli(number: int, premise: str, answer: str) -> Example:
    return Example(f"nli/en/train/{number}", "nli", "en", {"premise": premise, "hypothesis": "It is wet."}, answer)


QUERY = nli(0, "It rains.", "entailment")
SHOWN = [nli(1, "A cat.", "contradiction"), nli(2, "He ran.", "neutral")]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(tiny.chat_tokenizer())


@pytest.fixture(scope="module")
def other(encoder: PromptEncoder) -> PromptEncoder:
    """The same tokens behind another template."""
    tokenizer = tiny.chat_tokenizer()
    tokenizer.chat_template = OTHER_TEMPLATE
    return PromptEncoder(tokenizer)


def whole(encoder: PromptEncoder, shown: Sequence[Example]) -> AnsweredSequence:
    prompt = encoder.encode_prompt(NLI, QUERY, shown, max_tokens=9999)
    assert prompt is not None
    return AnsweredSequence.answering(prompt.ids, encoder.encode_answer(QUERY.answer))


def test_a_student_reads_prompt_and_answer(encoder: PromptEncoder) -> None:
    expected = whole(encoder, [])
    assert ExampleEncoder(encoder).student(NLI, QUERY, max_tokens=len(expected)) == [StudentSequence(expected)]
    assert encoder.tokenizer.decode(expected.answer_ids) == "entailment<end>"
    assert ExampleEncoder(encoder).student(NLI, QUERY, max_tokens=len(expected) - 1) == []


@pytest.mark.parametrize(("view", "shown"), [("zeroshot", []), ("fewshot", SHOWN), ("shuffled_answers", SHOWN)])
def test_a_teacher_reads_the_same_answer_behind_its_view(
    encoder: PromptEncoder, other: PromptEncoder, view: str, shown: list[Example]
) -> None:
    (student,) = ExampleEncoder(encoder).student(NLI, QUERY, max_tokens=9999)
    for teacher in (None, other):
        expected = whole(teacher or encoder, shown)
        seen = ExampleEncoder(encoder, teacher).teacher(view, NLI, QUERY, student, shown, max_tokens=len(expected))
        assert seen == (expected, len(shown))
        assert list(expected.answer_ids) == list(student.sequence.answer_ids)
    assert whole(other, shown) != whole(encoder, shown)


def test_demonstrations_go_from_the_front_and_then_the_example(encoder: PromptEncoder) -> None:
    examples = ExampleEncoder(encoder)
    (student,) = examples.student(NLI, QUERY, max_tokens=9999)
    lengths = [len(whole(encoder, SHOWN[start:])) for start in range(3)]
    for room, kept in ((lengths[0], 2), (lengths[0] - 1, 1), (lengths[1] - 1, 0), (lengths[2], 0)):
        seen = examples.teacher("fewshot", NLI, QUERY, student, SHOWN, max_tokens=room)
        assert seen == (whole(encoder, SHOWN[2 - kept :]), kept)
    assert examples.teacher("fewshot", NLI, QUERY, student, SHOWN, max_tokens=lengths[2] - 1) is None


def test_an_answer_is_generated_behind_the_prompt(encoder: PromptEncoder, other: PromptEncoder) -> None:
    examples = ExampleEncoder(encoder, other)
    expected = whole(encoder, SHOWN).prompt_ids
    prompt = examples.generation(NLI, QUERY, SHOWN, max_tokens=len(expected))
    assert prompt is not None
    assert (prompt.ids, prompt.demonstrations) == (list(expected), 2)
    shorter = examples.generation(NLI, QUERY, SHOWN, max_tokens=len(expected) - 1)
    assert shorter is not None
    assert shorter.demonstrations == 1
    assert examples.generation(NLI, QUERY, [], max_tokens=len(whole(encoder, []).prompt_ids) - 1) is None
