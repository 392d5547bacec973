"""Conversations of several turns, with tools, in real templates: every span's rows against a loop over tokens.

The reference takes each assistant turn by itself: it renders the messages before it with the tokenizer's own chat
template and feeds the model one token of the turn at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from logitbank.configs.schema import ModelConfig
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows
from logitbank.tasks import Example
from logitbank.tasks.encoding import ExampleEncoder
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from tests.tasks import dialogues
from tests.teacher_cache.test_alignment import random_model

TOP_K = 20
TOLERANCE = 1e-4  # float32 logits near 10, summed in another order
TURNS = 3
RUBRIC = "Answer briefly. Never promise what no tool has confirmed."


@dataclasses.dataclass(frozen=True)
class World:
    """A random model of a real tokenizer, and what it is asked."""

    tokenizer: Any
    examples: ExampleEncoder
    teacher: HFTeacher
    model: Any
    ends: list[int]

    def loop(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """(A, V) logits from which each answer token is predicted, one forward pass for each."""
        rows = []
        with torch.no_grad():
            state = self.model(input_ids=torch.tensor([list(prompt)]), use_cache=True, logits_to_keep=1)
            for token in answer:
                rows.append(state.logits[0, -1])
                state = self.model(input_ids=torch.tensor([[token]]), past_key_values=state.past_key_values)
        return torch.stack(rows)


@pytest.fixture(scope="module", params=["qwen3", "llama-3.2"])
def world(
    request: pytest.FixtureRequest, real_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> World:
    tokenizer = real_tokenizer(request.param)
    path = random_model(tmp_path_factory.mktemp("model"), rows=len(tokenizer) + 8)
    teacher = HFTeacher(
        ModelConfig(str(path)), dtype="float32", tokenizer_size=len(tokenizer), device=torch.device("cpu")
    )
    known = tokenizer.get_vocab()
    return World(
        tokenizer,
        ExampleEncoder(PromptEncoder(tokenizer)),
        teacher,
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(),
        [known[end] for end in ("<|im_end|>", "<|eot_id|>") if end in known],
    )


@pytest.fixture(scope="module")
def conversations(shared: Path) -> list[Example]:
    """One with tools and one without, their first turns, and what a teacher that knows more would read."""
    found = []
    for prefix in ("sgd", "tm4"):
        (example,) = dialogues.real_chats(shared, prefix, 1)
        conversation = example.fields["conversation"]
        at = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        messages = conversation.messages[: at[:TURNS][-1] + 1]
        more = [{"role": "system", "content": RUBRIC}, *(m for m in messages if m["role"] != "system")]
        found.append(dialogues.chat(messages, conversation.tools, prefix, more))
    assert found[0].fields["conversation"].tools
    assert any("tool_calls" in message for message in found[0].fields["conversation"].messages)
    return found


def read_under(view: str, example: Example, demonstration: Example) -> Example:
    """The conversation as a teacher reads it, put together here."""
    conversation = example.fields["conversation"]
    if view == "context":
        return dialogues.chat(conversation.teacher_messages, conversation.tools)
    if view == "fewshot":
        own = list(conversation.messages)
        opening = own[:1] if own[0]["role"] == "system" else []
        shown = demonstration.fields["conversation"].messages
        return dialogues.chat([*opening, *shown, *own[len(opening) :]], conversation.tools)
    return example


@pytest.mark.parametrize("view", ["zeroshot", "fewshot", "context"])
def test_every_span_has_the_rows_of_a_loop_over_tokens(world: World, conversations: list[Example], view: str) -> None:
    demonstration = dialogues.chat(dialogues.turns("Tea, please.", "With milk?", "No.", "Coming."), name="shown")
    shown = [demonstration] if view == "fewshot" else []
    spans = 0
    for example in conversations:
        students = dialogues.student(world.examples, example)
        read = dialogues.teacher(world.examples, view, example, shown)
        reference = dialogues.by_number(
            dialogues.generated(world.tokenizer, read_under(view, example, demonstration), world.ends)
        )
        batch = [Sequenced(found.sequence) for found in read if found is not None]
        assert len(batch) == len(students)
        rows = world.teacher.score(batch, TOP_K)
        start = 0
        for part, item in zip(students, batch, strict=True):
            assert item.sequence.answer_ids.tolist() == part.sequence.answer_ids.tolist()
            for number, span in zip(part.turns, item.sequence.spans, strict=True):
                prompt, answer = reference[number]
                assert item.sequence.ids[span.start : span.stop].tolist() == answer
                own = rows.take(np.arange(start, start + span.length))
                compare(world.loop(prompt, answer), own, answer, len(world.tokenizer))
                start += span.length
                spans += 1
        assert start == len(rows)
    messages = [message for example in conversations for message in example.fields["conversation"].messages]
    assert spans == sum(message["role"] == "assistant" for message in messages)


def compare(logits_TV: torch.Tensor, rows: TeacherRows, answer: Sequence[int], tokenizer_size: int) -> None:
    """Rows against full logits, in float64."""
    wide = logits_TV.double()
    real = wide[:, :tokenizer_size]
    top = real.topk(TOP_K, dim=-1)
    np.testing.assert_allclose(rows.logits, top.values, atol=TOLERANCE)
    # Two tokens may change places only where their logits are the same to within the tolerance.
    np.testing.assert_allclose(real.gather(1, torch.from_numpy(rows.token_ids).long()), top.values, atol=2 * TOLERANCE)
    np.testing.assert_allclose(rows.logsumexp, wide.logsumexp(-1), atol=TOLERANCE)
    np.testing.assert_allclose(rows.entropy, torch.special.entr(wide.softmax(-1)).sum(-1), atol=TOLERANCE)
    gold = wide.gather(1, torch.tensor(answer)[:, None])
    np.testing.assert_allclose(rows.gold_logit, gold[:, 0], atol=TOLERANCE)
    nearby = ((real - gold).abs() < TOLERANCE).sum(-1)
    assert (np.abs(rows.gold_rank - (real > gold).sum(-1).numpy()) < nearby.numpy()).all()


def test_a_batch_of_conversations_gives_what_each_gives_alone(world: World) -> None:
    """With and without a shared beginning; nothing behind a span has a say in it."""
    rng = np.random.default_rng(0)
    common = rng.integers(0, 1000, 40)
    made = []
    for lengths in ([5, 3, 4, 2, 6, 1], [30, 9], [1, 1, 1, 1, 1, 7]):
        ids = np.concatenate([common, rng.integers(0, 1000, sum(lengths))])
        ends = 40 + np.cumsum(lengths)
        made.append(AnsweredSequence(ids, [(int(end) - n, n) for end, n in zip(ends, lengths, strict=True)][1::2]))
    prefixed = HFTeacher(
        ModelConfig(str(world.model.config._name_or_path)),
        dtype="float32",
        tokenizer_size=len(world.tokenizer),
        device=torch.device("cpu"),
        prefix_reuse=True,
    )
    for engine, shared in ((world.teacher, 0), (prefixed, 40)):
        together = engine.score([Sequenced(sequence, shared) for sequence in made], TOP_K)
        start = 0
        for sequence in made:
            for number, span in enumerate(sequence.spans):
                only = AnsweredSequence(sequence.ids[: span.stop], [span])
                own = together.take(np.arange(start, start + span.length))
                alone = world.teacher.score([Sequenced(only)], TOP_K)
                for field in ("logits", "logsumexp", "entropy", "gold_logit"):
                    difference = np.abs(getattr(own, field) - getattr(alone, field)).max()
                    assert difference < TOLERANCE, (shared, number, field)
                start += span.length
        assert start == len(together)
