"""The store holds the logits that predict each answer token, at the place of that token.

The reference knows nothing of the store's arithmetic: it renders prompts with the tokenizer's own
chat template and feeds the model one more answer token at a time, looking at the last position only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from logitbank.configs import load_config
from logitbank.storage import TeacherStore
from logitbank.tasks import TASKS, DataSettings, Example
from logitbank.tasks.data import demonstration_pool, load_examples
from logitbank.tasks.demonstrations import draw_demonstrations
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from tests.plans import fill_with

TOP_K = 20
TOLERANCE = 1e-4


@functools.cache
def examples_and_pool(task_name: str, language: str, mirror: str) -> tuple[list[Example], list[Example]]:
    return (
        load_examples(task_name, "train", language, DataSettings(mirror=mirror)),
        demonstration_pool(task_name, language, DataSettings(mirror=mirror), stage="train"),
    )


def rendered_prompt(tokenizer: Any, store_example: str, mirror: Path, shots: int) -> list[int]:
    """The prompt of an example, put together here from the data set and the template."""
    task_name, language, _, _ = store_example.split("/")
    task = TASKS[task_name]
    examples, pool = examples_and_pool(task_name, language, str(mirror))
    query = next(example for example in examples if example.example_id == store_example)
    demonstrations = draw_demonstrations(pool, query, shots, seed=42, selection="per_example")
    turns = [{"role": "system", "content": task.system_prompt}]
    for example in demonstrations:
        turns += [
            {"role": "user", "content": task.user_message(example)},
            {"role": "assistant", "content": example.answer},
        ]
    turns.append({"role": "user", "content": task.user_message(query)})
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string="26 Jul 2024"
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def random_model(path: Path, rows: int) -> Path:
    """A model of that many `lm_head` rows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("tokenizer_name", "template"),
    [("qwen3", None), ("llama-3.2", None), ("qwen3", "microsoft-Phi-3.5-mini-instruct")],
)
def test_stored_signal_stands_at_the_answer_tokens(
    real_tokenizer: Callable[..., Any], shared: Path, tmp_path: Path, tokenizer_name: str, template: str | None
) -> None:
    tokenizer = real_tokenizer(tokenizer_name, template)
    model_path = random_model(tmp_path / "model", rows=len(tokenizer) + 8)
    tokenizer.save_pretrained(model_path)
    config = load_config(
        [],
        [
            f"model.name={model_path}",
            f"data.mirror={shared / 'hub'}",
            "tasks=[nli,qa,pos]",
            "languages=[en]",
            "data.max_train_per_task=2",
            "data.max_validation_per_task=0",
            "fewshot.num_demonstrations={nli: 2, qa: 2, pos: 2}",
            f"teacher.top_k={TOP_K}",
            "store.encoding=exact",
        ],
    )
    encoder = PromptEncoder(tokenizer)
    engine = HFTeacher(config.model, dtype="float32", tokenizer_size=len(encoder.tokenizer), device=torch.device("cpu"))
    fill_with(str(tmp_path / "store"), config, ("fewshot", "zeroshot"), engine)

    store = TeacherStore.open(str(tmp_path / "store"))
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    for example in range(len(store.examples)):
        answer = store.examples.answer_ids(example).tolist()
        assert tokenizer.decode(answer[:-1])  # the text is not empty …
        assert answer[-1] == encoder.end_of_turn_id  # … and the end of turn is supervised too
        for view, shots in (("fewshot", 2), ("zeroshot", 0)):
            prompt = rendered_prompt(tokenizer, store.examples.example_id[example], shared / "hub", shots)
            if view == "zeroshot":
                assert prompt == store.examples.sequence(example).prompt_ids.tolist()
            rows = store.read([example], view)
            assert len(rows) == len(answer)
            so_far = list(prompt)
            for position, token in enumerate(answer):
                with torch.no_grad():
                    last_hidden = model.model(input_ids=torch.tensor([so_far])).last_hidden_state[0, -1]
                    logits = model.lm_head(last_hidden).double().numpy()
                _compare(logits, rows, position, token, len(tokenizer))
                so_far.append(token)


def _compare(logits: np.ndarray, rows: Any, position: int, gold: int, tokenizer_size: int) -> None:
    peak = logits.max()
    logsumexp = peak + np.log(np.exp(logits - peak).sum())
    probabilities = np.exp(logits - logsumexp)
    real = logits[:tokenizer_size]
    order = np.argpartition(-real, TOP_K)[:TOP_K]
    order = order[np.argsort(-real[order], kind="stable")]
    np.testing.assert_allclose(rows.logits[position], real[order], atol=TOLERANCE)
    # Two tokens may change places only where their logits are the same to within the tolerance.
    stored_ids = rows.token_ids[position]
    np.testing.assert_allclose(real[stored_ids], real[order], atol=2 * TOLERANCE)
    assert len(set(stored_ids.tolist())) == TOP_K
    assert rows.logsumexp[position] == pytest.approx(logsumexp, abs=TOLERANCE)
    assert rows.entropy[position] == pytest.approx(-(probabilities * np.log(probabilities)).sum(), abs=TOLERANCE)
    assert rows.gold_logit[position] == pytest.approx(logits[gold], abs=TOLERANCE)
    nearby = (np.abs(real - logits[gold]) < TOLERANCE).sum()
    assert abs(int(rows.gold_rank[position]) - int((real > logits[gold]).sum())) < nearby
