"""Losses from draws: the dense forward KL in expectation, value and gradient; what draws cannot tell is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.configs import ConfigError
from logitbank.configs.schema import DistillationConfig
from logitbank.sequences import AnsweredSequence
from logitbank.storage import (
    ExampleRecord,
    OwnSequences,
    StoreError,
    StoreSpec,
    TeacherRows,
    TeacherStore,
    Vocabulary,
    open_builder,
)
from logitbank.student_train.batch import sample_weights
from logitbank.student_train.checks import check_store_fits
from logitbank.student_train.losses.base import StudentLogits, TeacherLogits, make_loss
from logitbank.student_train.train_command import main
from logitbank.tasks.prompts import PromptEncoder
from tests.storage import stores

pytestmark = pytest.mark.numeric

V, DRAWS = 48, 6


def systematic(probability: np.ndarray, draws: int, uniform: float) -> np.ndarray:
    """Counts per token, written down independently of the teacher stage."""
    edges = np.concatenate([[0.0], np.cumsum(probability) / probability.sum()])
    return np.diff(np.floor(edges * draws - uniform + 1e-12).astype(int)).clip(min=0)


def independent(probability: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(draws, probability / probability.sum())


def rows_of(logits: np.ndarray, counts: np.ndarray, *, ranks: int, hybrid: bool) -> TeacherRows:
    """One row per line of counts (N, V), of the same teacher."""
    wide = logits.astype(np.float64)
    logsumexp = np.log(np.exp(wide).sum())
    probability = np.exp(wide - logsumexp)
    order = np.argsort(-wide)[:ranks]
    tokens = len(counts)
    allowed = np.ones(V, dtype=bool)
    if hybrid:
        allowed[order] = False
    scalars = {
        "logsumexp": logsumexp,
        "entropy": -(probability * np.log(probability)).sum(),
        "gold_logit": wide[0],
        "sample_log_mass": np.log(probability[allowed].sum()),
    }
    return TeacherRows(
        token_ids=np.tile(order.astype(np.int32), (tokens, 1)),
        logits=np.tile(logits[order].astype(np.float32), (tokens, 1)),
        gold_rank=np.zeros(tokens, np.int32),
        sample_ids=np.tile(np.arange(V, dtype=np.int32), (tokens, 1)),
        sample_counts=counts.astype(np.int32),
        **{name: np.full(tokens, value, np.float32) for name, value in scalars.items()},
    )


@pytest.mark.parametrize("distance", [2.0, 0.1])
@pytest.mark.parametrize("how", ["systematic", "independent"])
@pytest.mark.parametrize("signal", ["sampled", "hybrid"])
def test_the_mean_over_draws_is_the_dense_forward_kl(signal: str, how: str, distance: float) -> None:
    """Many rows of one teacher and one student: mean loss and mean gradient against float64 arithmetic.

    A student close to its teacher has single values below zero, which must stay as they are.
    """
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, V).astype(np.float32)
    ranks = 5 if signal == "hybrid" else 1
    probability = np.exp(logits.astype(np.float64))
    if signal == "hybrid":
        probability[np.argsort(-logits)[:ranks]] = 0
    count = 4000
    grid = (np.arange(count) + 0.5) / count
    counts = np.stack(
        [
            systematic(probability, DRAWS, u) if how == "systematic" else independent(probability, DRAWS, rng)
            for u in grid
        ]
    )
    assert (counts.sum(axis=1) == DRAWS).all()
    rows = rows_of(logits, counts, ranks=ranks, hybrid=signal == "hybrid")
    student = torch.tensor(logits + rng.normal(0, distance, V), dtype=torch.float64, requires_grad=True)
    ids = torch.from_numpy(np.concatenate([rows.token_ids, rows.sample_ids], axis=1)).long()
    ours = StudentLogits(
        student.logsumexp(0).expand(count), student[0].expand(count), student[ids], ids[:, 0], torch.empty(0)
    )
    theirs = TeacherLogits(
        logits_TK=torch.from_numpy(rows.logits),
        logsumexp_T=torch.from_numpy(rows.logsumexp),
        entropy_T=torch.from_numpy(rows.entropy),
        gold_logit_T=torch.from_numpy(rows.gold_logit),
        gold_rank_T=torch.from_numpy(rows.gold_rank),
        weight_TC=torch.from_numpy(sample_weights(rows, signal)),
    )
    values = make_loss(DistillationConfig(loss="forward_kl"), V, signal)(ours, theirs)
    (gradient,) = torch.autograd.grad(values.mean(), student)

    target = torch.tensor(logits, dtype=torch.float64).log_softmax(0)
    dense = (target.exp() * (target - student.log_softmax(0))).sum()
    (expected,) = torch.autograd.grad(dense, student)
    scatter = float(values.detach().std()) / count**0.5 if how == "independent" else 0.0
    assert float(values.detach().mean()) == pytest.approx(float(dense.detach()), abs=5 * scatter + 2e-3)
    torch.testing.assert_close(gradient, expected, atol=0.01 if how == "independent" else 5e-4, rtol=0)
    assert values.std() > 0  # single rows do differ
    assert distance > 1 or (values < -1e-3).any()


@pytest.fixture(scope="module")
def sampled_store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tokenizer: Any) -> Callable[[str], str]:
    """`sampled_store(signal)`: a store of a made-up teacher with draws, over the tiny model's tokenizer."""

    def make(signal: str) -> str:
        rng = np.random.default_rng(1)
        size = len(tokenizer)
        records = [
            ExampleRecord(
                *(f"nli/{i}", "nli", "en"),
                AnsweredSequence.answering(rng.integers(2, size, 6), [*rng.integers(2, size, 3), 1]),
            )
            for i in range(16)
        ]
        top_k = 4 if signal == "hybrid" else 1
        spec = StoreSpec(
            model=str(tiny_model),
            tokenizer_size=size,
            vocab_size=size,
            tokenizer_hash=PromptEncoder(tokenizer).tokenizer_hash,
            tasks=("nli",),
            languages=("en",),
            top_k=top_k,
            encoding="compact",
            shard_tokens=32,
            chunk_tokens=16,
            teacher={},
            identity={},
            signal=signal,
            draws=DRAWS,
        )
        url = str(tmp_path_factory.mktemp("sampled") / signal)
        pilot = np.arange(size, dtype=np.int32)[:, None]
        with open_builder(url, spec, records, [], vocabulary=lambda: Vocabulary.learn(pilot, size)) as builder:
            builder.add_view("fewshot", {}, {})
            for shard in range(builder.plan.shards):
                builder.write_shard("fewshot", shard, made_up(builder.plan.used_rows(shard), size, top_k, signal, rng))
        return url

    return make


def made_up(tokens: int, size: int, top_k: int, signal: str, rng: np.random.Generator) -> TeacherRows:
    logits = rng.normal(0, 2, (tokens, size)).astype(np.float32)
    logsumexp = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    order = np.argsort(-logits, axis=1)[:, :top_k]
    probability = np.exp(logits - logsumexp[:, None])
    if signal == "hybrid":
        np.put_along_axis(probability, order, 0, axis=1)
    counts = np.stack([systematic(row, DRAWS, rng.random()) for row in probability])
    ids = np.argsort(-counts, axis=1, kind="stable")[:, :DRAWS]
    return TeacherRows(
        token_ids=order.astype(np.int32),
        logits=np.take_along_axis(logits, order, 1),
        logsumexp=logsumexp.astype(np.float32),
        entropy=np.full(tokens, 2.0, np.float32),
        gold_logit=logits[:, 1],
        gold_rank=(logits > logits[:, 1:2]).sum(axis=1).astype(np.int32),
        sample_ids=ids.astype(np.int32),
        sample_counts=np.take_along_axis(counts, ids, 1).astype(np.int32),
        sample_log_mass=np.log(probability.sum(axis=1)).astype(np.float32),
    )


@pytest.mark.parametrize("signal", ["sampled", "hybrid"])
def test_a_student_trains_from_draws(
    signal: str, sampled_store: Callable[[str], str], tiny_model: Path, tmp_path: Path
) -> None:
    options = ["--store", sampled_store(signal), "--view", "fewshot", "--output", str(tmp_path / "run")]
    settings = ["tasks=[nli]", "distillation.loss=forward_kl", "training.max_steps=2", "training.num_workers=0"]
    settings += ["training.use_lora=false", "training.global_batch_size=4", "training.micro_batch_size=2"]
    main([*options, f"model.name={tiny_model}", *settings])
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_a_view_with_sequences_of_its_own_is_refused(
    tmp_path: Path, configure: Callable[..., Any], tokenizer: Any
) -> None:
    url, examples = str(tmp_path), stores.records(4)
    own = OwnSequences([examples[0].example_id], stores.conversations(1))
    with open_builder(url, stores.spec(), examples, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("sampled", {}, {}, own=own)
        stores.write_missing(builder, "sampled", own.sequences, 96)
    with pytest.raises(StoreError, match="--view sampled: its teacher read different sequences"):
        check_store_fits(TeacherStore.open(url), configure(), "sampled", PromptEncoder(tokenizer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distillation.loss=mse", "from which mse cannot be estimated; expected forward_kl, got mse"),
        ("distillation.loss=jsd", "expected forward_kl, got jsd"),
        ("distillation.temperature=2", "distillation.temperature: expected 1"),
        ("distillation.n_top_logits=1", "distillation.n_top_logits: expected null"),
    ],
)
def test_what_draws_cannot_tell_is_refused(
    change: str, message: str, sampled_store: Callable[[str], str], configure: Callable[..., Any], tokenizer: Any
) -> None:
    store = TeacherStore.open(sampled_store("sampled"))
    config = configure("tasks=[nli]", "distillation.loss=forward_kl", change)
    with pytest.raises(ConfigError, match=message):
        check_store_fits(store, config, "fewshot", PromptEncoder(tokenizer))
    check_store_fits(store, config, None, PromptEncoder(tokenizer))  # cross-entropy alone needs no draws
