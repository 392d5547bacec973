"""Greedy generation in batches gives what one prompt at a time gives, and what a plain loop gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from logitbank.configs import ConfigError
from logitbank.evaluation.checkpoints import open_checkpoint
from logitbank.evaluation.engines.base import Answer, Engine, Request, open_engine
from logitbank.evaluation.engines.huggingface import GENERATION_COST, HfEngine
from logitbank.models.batches import batches_by_length
from logitbank.registry import EVALUATION_ENGINES


def _requests(count: int, seed: int = 1) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request([rng.randrange(256) for _ in range(rng.randrange(3, 60))], rng.randrange(2, 14)) for _ in range(count)
    ]


def _silent(_: int) -> None:
    pass


def _greedy_loop(model: Any, stop_ids: list[int], request: Request) -> list[int]:
    """The definition: the likeliest next token, again and again, from a fresh forward pass each time."""
    ids = list(request.prompt_ids)
    while len(ids) - len(request.prompt_ids) < request.max_new_tokens:
        with torch.inference_mode():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids[len(request.prompt_ids) :]


def test_batches_equal_the_plain_loop(config: Any, tokenizer: Any) -> None:
    engine = open_engine(config("evaluation.batch_tokens=300"), None)
    requests = _requests(24)
    ready: list[int] = []
    assert isinstance(engine, HfEngine)
    answers = engine.generate(requests, progress=ready.append)
    assert sum(ready) == 24
    assert len(ready) > 3, "the budget was to make several batches"
    for answer, request in zip(answers, requests, strict=True):
        ids = _greedy_loop(engine.model, engine.stop_ids, request)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.cut_short == (len(ids) == request.max_new_tokens)
    assert len({len(answer.text) for answer in answers}) > 1, "answers of different lengths make this a test"


def test_generation_stops_at_the_end_of_the_turn(tiny_model: Path, tokenizer: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    request = Request(list(b"a prompt"), 14)
    free = _greedy_loop(model, [], request)
    engine = HfEngine(model, tokenizer, batch_tokens=64)
    engine.stop_ids = [free[4]]  # any token of the answer serves as the end
    cut = free.index(free[4])
    whole = tokenizer.decode(free[:cut], skip_special_tokens=True)
    assert engine.generate([request], progress=_silent) == [Answer(whole, cut_short=False)]
    # a limit that the stop token just fits into, and one that it does not
    assert engine.generate([Request(request.prompt_ids, cut + 1)], progress=_silent) == [Answer(whole, False)]
    assert engine.generate([Request(request.prompt_ids, cut)], progress=_silent) == [Answer(whole, cut_short=True)]


def test_answer_logprobs_equal_one_token_at_a_time(config: Any) -> None:
    engine = open_engine(config("evaluation.batch_tokens=150"), None)
    assert isinstance(engine, HfEngine)
    pairs = [(request.prompt_ids, list(request.prompt_ids[: 1 + i % 5])) for i, request in enumerate(_requests(9))]
    got = engine.answer_logprobs([p for p, _ in pairs], [a for _, a in pairs], progress=_silent)
    for (prompt, answer), value in zip(pairs, got, strict=True):
        total = 0.0
        for done, token in enumerate(answer):
            with torch.inference_mode():
                logits = engine.model(torch.tensor([[*prompt, *answer[:done]]])).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
        assert value == pytest.approx(total, rel=1e-4)


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 300))
def test_every_row_is_in_one_batch_and_batches_keep_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_length(lengths, budget, batch_cost=GENERATION_COST)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget
    assert [lengths[batch[0]] for batch in batches] == sorted((lengths[batch[0]] for batch in batches), reverse=True)


def test_generation_prefers_padding_to_another_batch() -> None:
    lengths = [400, 100, 100, 100, 90, 10]
    assert len(batches_by_length(lengths, 2400, batch_cost=GENERATION_COST)) == 1
    assert len(batches_by_length(lengths, 2400)) > 1, "a forward pass alone would be cheaper in several"


def test_an_engine_from_outside_the_package_is_chosen_by_name(config: Any) -> None:
    class Silent:
        context_tokens = 7

        def generate(self, requests: Any, *, progress: Any) -> list[Answer]:
            return [Answer("", cut_short=False) for _ in requests]

        def answer_logprobs(self, prompts: Any, answers: Any, *, progress: Any) -> list[float]:
            return [0.0 for _ in prompts]

    def open_silent(config: Any, checkpoint: Any) -> Engine:
        return Silent()

    EVALUATION_ENGINES.register("silent", open_silent)
    try:
        assert open_engine(config("evaluation.engine=silent"), None).context_tokens == 7
    finally:
        EVALUATION_ENGINES.unregister("silent")


def test_adapter_and_full_checkpoint_are_recognised(
    tiny_model: Path, tokenizer: Any, config: Any, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    requests = _requests(5)
    plain = open_engine(config(), None).generate(requests, progress=_silent)
    from_adapter = open_engine(config(), open_checkpoint(tmp_path / "adapter")).generate(requests, progress=_silent)
    adapted.merge_and_unload().save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    from_full = open_engine(config(), open_checkpoint(tmp_path / "full")).generate(requests, progress=_silent)
    assert from_adapter == from_full
    assert from_adapter != plain


def test_an_adapter_of_another_model_is_refused_in_one_line(tiny_model: Path, config: Any, tmp_path: Path) -> None:
    bigger = transformers.AutoConfig.from_pretrained(tiny_model).to_dict() | {"hidden_size": 64}
    other = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**bigger))
    peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"adapter .* does not fit model.name=") as caught:
        open_engine(config(), open_checkpoint(tmp_path / "a"))
    assert "\n" not in str(caught.value)
