"""A store from a teacher loop of one's own: what is written is what was given, resumes, and is verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank import ExampleRecord, StoreError, StoreWriter, TeacherDataset, TeacherStore, open_store
from logitbank.configs import load_config
from logitbank.errors import ConfigError
from logitbank.storage import verify
from logitbank.student_train.checks import check_store_fits
from logitbank.tasks.prompts import PromptEncoder
from tests import tiny

TOKENS, VOCAB, TOP_K = 60, 64, 6
IDS = np.random.default_rng(0).integers(2, TOKENS, (12, 10))
LABELS = np.where(np.arange(10) >= 6, IDS, -100)
LABELS[::2, 3] = IDS[::2, 3]  # two answers in half of them
EXAMPLES = [ExampleRecord.from_labels(f"mine/{i}", *pair) for i, pair in enumerate(zip(IDS, LABELS, strict=True))]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.word_tokenizer(TOKENS)


def logits_of(example: int) -> torch.Tensor:
    """(T, V) float64, of an imagined teacher."""
    generator = torch.Generator().manual_seed(example)
    shape = (len(EXAMPLES[example].answer_ids), VOCAB)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2


def writer(url: Path, tokenizer: Any, **changes: Any) -> StoreWriter:
    options = {"tokenizer": tokenizer, "model": "base", "teacher": {"model": "mine"}, "view": "mine", "top_k": TOP_K}
    options |= {"vocab_size": VOCAB, "shard_tokens": 12, "encoding": "exact"}
    return StoreWriter(str(url), EXAMPLES, **{**options, **changes})


def test_labels_say_which_tokens_are_learned() -> None:
    assert EXAMPLES[0].answer_positions.tolist() == [3, 6, 7, 8, 9]
    assert EXAMPLES[1].answer_positions.tolist() == [6, 7, 8, 9]
    longer = ExampleRecord.from_labels("x", [5, 6, 7, 8], [-100, 6, -100, -100], task="t", language="en")
    assert (longer.input_ids.tolist(), longer.task, longer.language) == ([5, 6], "t", "en")
    for labels in ([-100] * 4, [5, 6, 7, 8], [-100, 7, -100, -100], [-100, 6]):
        with pytest.raises(StoreError, match="example x, labels: expected one for each of its 4 tokens"):
            ExampleRecord.from_labels("x", [5, 6, 7, 8], labels)


@pytest.mark.numeric
def test_dense_logits_come_back_with_their_exact_scalars(tmp_path: Path, tokenizer: Any) -> None:
    with writer(tmp_path / "store", tokenizer) as store:
        assert store.missing() == list(range(12))
        for i in store.missing():
            store.write(i, logits_of(i).float().numpy() if i % 2 else logits_of(i).float())
        assert store.missing() == []
    assert verify(str(tmp_path / "store")) == []
    opened = open_store(tmp_path / "store")
    assert [record.id for record in opened.examples] == [record.id for record in EXAMPLES]
    for i in range(12):
        rows, full = opened.read([i], "mine"), logits_of(i)
        log_p = full.log_softmax(1)
        gold = full.gather(1, torch.from_numpy(EXAMPLES[i].answer_ids).long()[:, None])
        values, ids = full[:, :TOKENS].topk(TOP_K)
        np.testing.assert_array_equal(rows.token_ids, ids)
        np.testing.assert_allclose(rows.logits, values, rtol=1e-6)
        np.testing.assert_allclose(rows.logsumexp, full.logsumexp(1), rtol=1e-5)
        np.testing.assert_allclose(rows.entropy, -(log_p.exp() * log_p).sum(1), rtol=1e-5)
        np.testing.assert_array_equal(rows.gold_rank, (full[:, :TOKENS] > gold).sum(1))
    assert opened.bounded("mine") == ()


def test_what_was_whole_is_kept_and_the_rest_resumed(tmp_path: Path, tokenizer: Any, caplog: Any) -> None:
    url = tmp_path / "store"
    with writer(url, tokenizer) as store:
        for i in range(4):  # two shards of two examples, and two examples of the third
            store.write(i, logits_of(i).float())
        store.write(4, logits_of(4).float())
    assert "1 example not written" in caplog.text
    with writer(url, tokenizer) as store:
        assert store.missing() == list(range(4, 12))
        with pytest.raises(StoreError, match=r"example 0 \(mine/0\): already has its rows"):
            store.write(0, logits_of(0))
        for i in store.missing():
            store.write(i, logits_of(i).float())
    assert verify(str(url)) == []
    with writer(url, tokenizer) as store:
        assert store.missing() == []
    with pytest.raises(StoreError, match="teacher"), writer(url, tokenizer, teacher={"model": "other"}):
        pass


def test_workers_share_the_shards_and_views_the_examples(tmp_path: Path, tokenizer: Any) -> None:
    url = tmp_path / "store"
    for index in range(2):
        with writer(url, tokenizer, worker=(index, 2)) as store:
            mine = store.missing()
            assert 0 < len(mine) < 12
            for i in mine:
                store.write(i, logits_of(i).float())
    with writer(url, tokenizer, view="second") as store:
        for i in store.missing():
            store.write(i, logits_of(i).float() / 2)
    assert verify(str(url)) == []
    assert TeacherStore.open(str(url)).views == ("mine", "second")


def test_what_does_not_fit_is_one_line(tmp_path: Path, tokenizer: Any) -> None:
    with writer(tmp_path / "store", tokenizer) as store:
        full = logits_of(1).float()
        with pytest.raises(StoreError, match=r"example 1 \(mine/1\), logits: expected \(4, 64\), a row for each"):
            store.write(1, full[1:])
        with pytest.raises(StoreError, match=r"logits: expected \(4, 64\), got \(4, 60\)"):
            store.write(1, full[:, :60])
        with pytest.raises(StoreError, match="NaN"):
            store.write(1, full * torch.nan)
        with pytest.raises(StoreError, match="example: expected 0 to 11, got 12"):
            store.write(12, full)
        values, ids = full.topk(TOP_K)
        with pytest.raises(StoreError, match=r"token_ids: expected \(4, 6\), got \(4, 5\)"):
            store.write_top_k(1, ids[:, 1:], values[:, 1:])
        with pytest.raises(StoreError, match="token_ids: expected distinct tokens"):
            store.write_top_k(1, ids * 0, values)
        with pytest.raises(StoreError, match=r"entropy: expected \(T,\) numbers, got none; .* bounded=\['entropy'\]"):
            store.write_top_k(1, ids, values, logsumexp=full.logsumexp(1))
    assert not (tmp_path / "store").exists()
    with pytest.raises(StoreError, match="bounded: expected names among logits, logsumexp, entropy, gold, got nothing"):
        writer(tmp_path / "store", tokenizer, bounded=["nothing"])
    with pytest.raises(StoreError, match="top_k: expected at most 60 tokens, got 61"):
        writer(tmp_path / "store", tokenizer, top_k=61)


@pytest.mark.numeric
def test_ranks_of_another_program_are_kept_and_bounds_said(tmp_path: Path, tokenizer: Any) -> None:
    url = tmp_path / "store"
    with writer(url, tokenizer, bounded=["entropy", "gold"]) as store:
        for i in store.missing():
            log_p, ids = logits_of(i)[:, :TOKENS].log_softmax(1).topk(TOP_K)
            shuffled = torch.randperm(TOP_K)
            store.write_top_k(i, ids[:, shuffled], log_p[:, shuffled])
    assert verify(str(url)) == []
    opened = open_store(url)
    assert opened.bounded("mine") == ("entropy", "gold")
    for i in range(12):
        rows, exact = opened.read([i], "mine"), logits_of(i)[:, :TOKENS].log_softmax(1)
        np.testing.assert_array_equal(rows.token_ids, exact.topk(TOP_K).indices)
        np.testing.assert_allclose(rows.logits, exact.topk(TOP_K).values, rtol=1e-6)
        # the least entropy that the six allow: all other tokens as one
        outcomes = torch.cat([exact.topk(TOP_K).values, exact.topk(TOKENS).values[:, TOP_K:].logsumexp(1)[:, None]], 1)
        np.testing.assert_allclose(rows.entropy, -(outcomes.exp() * outcomes).sum(1), rtol=1e-4)
        gold = exact.gather(1, torch.from_numpy(EXAMPLES[i].answer_ids).long()[:, None])[:, 0].numpy()
        assert (rows.gold_logit >= gold - 1e-5).all()
        np.testing.assert_array_equal(
            rows.gold_rank < TOP_K, (rows.token_ids == EXAMPLES[i].answer_ids[:, None]).any(1)
        )
    assert TeacherDataset(opened, view="mine")[0].info.bounded == ("entropy", "gold")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("distillation.strategy=entropy", r"distillation\.strategy: entropy needs the exact entropy"),
        ("distillation.gate=teacher_correct", r"distillation\.gate: teacher_correct needs the exact gold"),
        ("distillation.loss=mse", r"distillation\.loss: mse needs the exact logits"),
        ("distillation.loss=forward_kl", ""),
    ],
)
def test_training_refuses_what_needs_exact_numbers(tmp_path: Path, tokenizer: Any, asked: str, message: str) -> None:
    url, base = tmp_path / "store", tiny.save_model(tmp_path / "base", tokenizer, rows=VOCAB)
    with writer(url, tokenizer, model=str(base), bounded=["entropy", "gold", "logits"]) as store:
        for i in store.missing():
            log_p, ids = logits_of(i).log_softmax(1)[:, :TOKENS].topk(TOP_K)
            store.write_top_k(i, ids, log_p)
    loss = [] if "loss" in asked else ["distillation.loss=forward_kl"]
    config = load_config([], [f"model.name={base}", "tasks=[chat]", *loss, asked], any_task=True)
    check = lambda: check_store_fits(TeacherStore.open(str(url)), config, "mine", PromptEncoder(tokenizer))  # noqa: E731
    if not message:
        check()
        return
    with pytest.raises(ConfigError, match=message):
        check()
