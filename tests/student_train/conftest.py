"""A tiny world: a random Qwen3 with 97 tokens, and stores whose rows its own forward passes filled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from logitbank.configs import Config, load_config
from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord, StoreSpec, TeacherRows, TeacherStore, Vocabulary, open_builder
from logitbank.tasks.prompts import PromptEncoder
from tests import tiny

VOCAB, TOKENS = 104, 97  # rows of the lm_head (padding included), length of the tokenizer
TASKS = ("nli", "pos")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny.word_tokenizer(TOKENS)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Directory of a Qwen3 with 2 layers and tied embeddings."""
    path = tmp_path_factory.mktemp("tiny-qwen3")
    return tiny.save_model(path, tokenizer, rows=VOCAB, max_position_embeddings=256, initializer_range=0.15)


@pytest.fixture(scope="session")
def make_store(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tokenizer: Any
) -> Callable[..., SimpleNamespace]:
    """`make_store(count=…, top_k=…)` builds a store with views fewshot and zeroshot.

    Returns its url and, per view, the prompts and the whole sequences that the teacher saw (`prompts[view][i]`,
    `sequences[view][i]`). An example has as many answer spans as `turns` says.
    """

    def make(
        *,
        count: int = 24,
        top_k: int = VOCAB,
        encoding: str = "exact",
        shard_tokens: int = 32,
        max_answer: int = 7,
        turns: int = 1,
        identity: Mapping[str, Any] | None = None,
        name_of: Callable[[ExampleRecord, int], str] = lambda record, i: record.example_id,
    ) -> SimpleNamespace:
        generator = np.random.default_rng(7)

        def words(low: int, high: int) -> list[int]:
            return generator.integers(2, TOKENS, generator.integers(low, high)).tolist()

        def record(i: int, name: str) -> ExampleRecord:
            answer = [*words(1, max_answer), 1]
            sequence = AnsweredSequence.answering(words(4, 12), answer)
            for _ in range(turns - 1):
                longer, answer = [*sequence.ids, *words(2, 5)], [*words(1, max_answer), 1]
                spans = [*sequence.spans, (len(longer), len(answer))]
                sequence = AnsweredSequence([*longer, *answer], spans)
            return ExampleRecord(f"{TASKS[i % 2]}/{name}/{i}", TASKS[i % 2], "en", sequence)

        records = [record(i, "train") for i in range(count)]
        records = [dataclasses.replace(r, example_id=name_of(r, i)) for i, r in enumerate(records)]
        validation = [record(i, "validation") for i in range(8)]
        sequences = {
            "zeroshot": [r.sequence for r in records],
            "fewshot": [_behind(words(6, 14), r.sequence) for r in records],
        }
        url = str(tmp_path_factory.mktemp("store") / "tiny.zarr")
        spec = StoreSpec(
            model=str(tiny_model),
            tokenizer_size=VOCAB if top_k == VOCAB else TOKENS,
            vocab_size=VOCAB,
            tokenizer_hash=PromptEncoder(tokenizer).tokenizer_hash,
            tasks=TASKS,
            languages=("en",),
            top_k=top_k,
            encoding=encoding,
            shard_tokens=shard_tokens,
            chunk_tokens=16,
            teacher={"model": "tiny"},
            identity=identity or {},
        )
        teacher = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
        pilot = np.arange(spec.tokenizer_size, dtype=np.int32)[:, None]
        with open_builder(
            url, spec, records, validation, vocabulary=lambda: Vocabulary.learn(pilot, spec.tokenizer_size)
        ) as builder:
            for view, seen in sequences.items():
                builder.add_view(view, {"view": view}, {})
                for shard in range(builder.plan.shards):
                    rows = [teacher_rows(teacher, seen[i], spec) for i in builder.plan.examples_of(shard)]
                    joined = {
                        n: np.concatenate([getattr(r, n) for r in rows]) for n in TeacherRows.__dataclass_fields__
                    }
                    builder.write_shard(view, shard, TeacherRows(**joined))
        prompts = {view: [sequence.prompt_ids.tolist() for sequence in seen] for view, seen in sequences.items()}
        store = TeacherStore.open(url)
        return SimpleNamespace(url=url, prompts=prompts, sequences=sequences, records=records, store=store)

    return make


def _behind(prefix: list[int], sequence: AnsweredSequence) -> AnsweredSequence:
    spans = [(span.start + len(prefix), span.length) for span in sequence.spans]
    return AnsweredSequence([*prefix, *sequence.ids], spans)


def teacher_rows(teacher: Any, sequence: AnsweredSequence, spec: StoreSpec) -> TeacherRows:
    """Rows of one example: an answer token at position p is predicted at p − 1."""
    with torch.no_grad():
        logits = teacher(torch.from_numpy(sequence.ids[None]).long()).logits[0]
    full = logits[sequence.answer_positions - 1]
    values, ids = full[:, : spec.tokenizer_size].sort(dim=-1, descending=True, stable=True)
    gold = full.gather(1, torch.from_numpy(sequence.answer_ids).long()[:, None])
    probabilities = full.double().softmax(-1)
    return TeacherRows(
        token_ids=ids[:, : spec.top_k].to(torch.int32).numpy(),
        logits=values[:, : spec.top_k].numpy(),
        logsumexp=full.logsumexp(-1).numpy(),
        entropy=-(probabilities * probabilities.log()).sum(-1).float().numpy(),
        gold_logit=gold[:, 0].numpy(),
        gold_rank=(full > gold).sum(-1).to(torch.int32).numpy(),
    )


@pytest.fixture(scope="session")
def small_store(make_store: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """16 of 97 tokens stored per answer token."""
    return make_store(top_k=16)


@pytest.fixture(scope="session")
def configure(tiny_model: Path) -> Callable[..., Config]:
    """`configure("training.max_steps=3", …)`: full fine-tuning of the tiny model in float32."""

    def make(*overrides: str) -> Config:
        return load_config(
            [],
            [
                f"model.name={tiny_model}",
                "tasks=[nli,pos]",
                *tiny.FOUR_STEPS,
                "training.num_workers=0",
                *overrides,
            ],
        )

    return make
