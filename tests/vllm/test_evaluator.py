"""The vLLM evaluator answers as the transformers evaluator does: base model, adapter, full checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from logitbank.configs import Config, ConfigError, load_config
from logitbank.evaluation import evaluate_command
from logitbank.evaluation.checkpoints import Checkpoint, open_checkpoint
from logitbank.evaluation.engines.base import Answer, Draw, Request, Sampling, Teacher, open_engine
from logitbank.evaluation.engines.huggingface import HfEngine
from logitbank.sequences import AnsweredSequence
from logitbank.tasks.prompts import PromptEncoder

QUESTIONS = ["What is 3 + 4?", "Name the people: Ada met Bob in Paris.", "Does rain follow from wet streets?"]
LABELS = ["entailment", "neutral", "yes", "7"]


def _config(settings: list[str], *overrides: str) -> Config:
    return load_config([], [*settings, "model.dtype=float32", *overrides])


def _prompts(tokenizer: Any) -> list[list[int]]:
    encode = tokenizer.apply_chat_template
    return [
        list(encode([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)) + extra
        for text in QUESTIONS
        for extra in ([], [198])
    ]


def _compare(settings: list[str], checkpoint: Checkpoint | None) -> list[Answer]:
    """Check both engines against each other; the answers that they gave."""
    ours = open_engine(_config(settings, "evaluation.engine=vllm"), checkpoint)
    theirs = open_engine(_config(settings, "evaluation.engine=hf"), checkpoint)
    assert isinstance(theirs, HfEngine)
    prompts = _prompts(theirs.tokenizer)
    requests = [Request(prompt, 6 + 5 * i) for i, prompt in enumerate(prompts)]
    ready: list[int] = []
    answers = ours.generate(requests, progress=ready.append)
    assert sum(ready) == len(requests)
    assert answers == theirs.generate(requests, progress=lambda count: None)
    encoder = PromptEncoder(theirs.tokenizer)
    pairs = [(prompt, encoder.encode_answer(label)) for prompt in prompts for label in LABELS]
    columns = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    expected = theirs.answer_logprobs(*columns, progress=lambda count: None)
    assert ours.answer_logprobs(*columns, progress=ready.append) == pytest.approx(expected, abs=2e-3)
    answers_ids = [encoder.encode_answer(label) for label in LABELS]
    sequences = []
    for prompt, first, last in zip(prompts, answers_ids, reversed(answers_ids), strict=False):
        second = 2 * len(prompt) + len(first)
        spans = [(len(prompt), len(first)), (second, len(last))]
        sequences.append(AnsweredSequence([*prompt, *first, *prompt, *last], spans))
    for got, want in zip(*(engine.score(sequences, progress=ready.append) for engine in (ours, theirs)), strict=True):
        assert (got.tokens, got.correct) == (want.tokens, want.correct)
        assert got.negative_log_likelihood == pytest.approx(want.negative_log_likelihood, abs=2e-3)
    with pytest.raises(ConfigError, match=r"--store: vLLM .*; set evaluation.engine=hf"):
        ours.score(sequences, Teacher(lambda places: pytest.fail("never asked"), 1), progress=ready.append)
    assert ours.context_tokens == theirs.context_tokens
    return answers


@pytest.fixture(scope="module")
def base_answers(settings: list[str]) -> list[Answer]:
    return _compare(settings, None)


def test_the_base_model_answers_alike(base_answers: list[Answer]) -> None:
    assert len(set(base_answers)) > 1


def test_an_adapter_answers_alike(settings: list[str], base_answers: list[Answer], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(_config(settings).model.name, dtype=torch.float32)
    lora = peft.LoraConfig(
        r=12, lora_alpha=48, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"], init_lora_weights=False
    )
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    assert _compare(settings, open_checkpoint(tmp_path / "adapter")) != base_answers


def test_a_full_checkpoint_answers_alike(settings: list[str], base_answers: list[Answer], tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = Path(_config(settings).model.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, tmp_path / name)
    assert _compare(settings, open_checkpoint(tmp_path)) != base_answers


def test_the_command_writes_the_same_rows(settings: list[str], tmp_path: Path) -> None:
    rows = {}
    for engine in ("hf", "vllm"):
        results = tmp_path / engine
        arguments = ["--condition", "fewshot", "--results", str(results), *settings]
        evaluate_command.main([*arguments, "model.dtype=float32", "tasks=[nli,ner]", f"evaluation.engine={engine}"])
        table = pq.read_table(results / "predictions")
        rows[engine] = sorted(table.drop(["run"]).to_pylist(), key=lambda row: (row["task"], row["example_id"]))
        (run,) = pq.read_table(results / "runs").to_pylist()
        assert ("vllm" in json.loads(run["versions"])) == (engine == "vllm")
    assert len(rows["hf"]) == 10
    assert rows["vllm"] == rows["hf"]


def test_an_adapter_that_vllm_cannot_take_is_one_line(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 600}))
    with pytest.raises(ConfigError, match=r"--checkpoint: vLLM supports adapters up to rank 512, .* has 600"):
        open_engine(_config(settings, "evaluation.engine=vllm"), open_checkpoint(tmp_path))


def test_samples_are_drawn_by_numbers_of_their_own(settings: list[str]) -> None:
    """The same whatever else is asked; the likeliest tokens at temperature 0, as transformers has them."""
    ours = open_engine(_config(settings, "evaluation.engine=vllm"), None)
    theirs = open_engine(_config(settings, "evaluation.engine=hf"), None)
    assert isinstance(theirs, HfEngine)
    vocabulary = len(theirs.tokenizer)
    draws = [
        Draw(Request(prompt, 12), 7, f"{number}/{copy}")
        for number, prompt in enumerate(_prompts(theirs.tokenizer)[:3])
        for copy in (1, 2)
    ]
    warm, ready = Sampling(1.0, 1.0, vocabulary), []  # type: tuple[Sampling, list[int]]
    samples = ours.sample(draws, warm, progress=ready.append)
    assert sum(ready) == len(draws)
    assert ours.sample(draws[::-2], warm, progress=ready.append) == samples[::-2]
    assert [list(one.token_ids) for one in samples[::2]] != [list(one.token_ids) for one in samples[1::2]]
    assert all(sample.cut_short == (sample.token_ids[-1] not in theirs.stop_ids) for sample in samples)
    cold = Sampling(0.0, 1.0, vocabulary)
    assert ours.sample(draws, cold, progress=ready.append) == theirs.sample(draws, cold, progress=ready.append)
