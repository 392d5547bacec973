"""Draws: unbiased, reproducible, and stored as they were made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logitbank.configs import ConfigError, load_config
from logitbank.registry import ENCODINGS
from logitbank.storage import StoreError, StoreSpec, TeacherRows, TeacherStore, concatenate, open_builder, verify
from logitbank.storage.teacher_store.samples import decode_samples, encode_samples, sample_problems
from logitbank.teacher_cache.sampling import Sampling, add_samples
from logitbank.teacher_cache.signal import signal
from logitbank.uniforms import uniforms
from tests.storage import stores

V, TOKENS = 40, 37  # rows of the lm_head, three of them padding


def drawn(logits: np.ndarray, u: np.ndarray, *, draws: int, beyond_top: bool, top_k: int = 3) -> TeacherRows:
    logits_TV = torch.from_numpy(np.broadcast_to(logits, (len(u), logits.shape[-1])).copy())
    rows = signal(logits_TV, torch.zeros(len(u), dtype=torch.long), top_k, TOKENS)
    return add_samples(rows, logits_TV, Sampling(draws, beyond_top, u), TOKENS)


def frequencies(rows: TeacherRows) -> np.ndarray:
    """Mean share of the draws per token, (TOKENS,) float64."""
    share = rows.sample_counts / rows.sample_counts.sum(axis=1, keepdims=True)
    return np.bincount(rows.sample_ids.ravel(), share.ravel(), TOKENS) / len(rows)


@pytest.mark.parametrize("beyond_top", [False, True])
@pytest.mark.parametrize("draws", [1, 7, 50])
def test_each_token_is_drawn_as_often_as_its_probability_says(draws: int, beyond_top: bool) -> None:
    """Over a grid of uniform numbers the mean share is the float64 softmax over what could be drawn."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, V).astype(np.float32)
    grid = (np.arange(4000) + 0.5) / 4000
    rows = drawn(logits, grid, draws=draws, beyond_top=beyond_top)
    allowed = logits[:TOKENS].astype(np.float64)
    if beyond_top:
        allowed[rows.token_ids[0]] = -np.inf
    weights = np.exp(allowed)
    np.testing.assert_allclose(frequencies(rows), weights / weights.sum(), atol=2e-3 / draws)
    mass = weights.sum() / np.exp(logits.astype(np.float64)).sum()
    np.testing.assert_allclose(np.exp(rows.sample_log_mass), mass, rtol=1e-5)
    expected = draws * weights / weights.sum()
    counts = np.zeros((len(rows), TOKENS))
    np.add.at(counts, (np.arange(len(rows))[:, None], rows.sample_ids), rows.sample_counts)
    assert (np.abs(counts - expected) < 1 + 1e-6).all()  # systematic: rounded up or down, never further off


def test_uniform_numbers_are_the_same_for_ever() -> None:
    numbers = uniforms(42, "nli/en/train/7", 3)
    np.testing.assert_array_equal(numbers[:2], uniforms(42, "nli/en/train/7", 2))
    assert numbers.tolist() == GOLDEN
    assert not np.isin(numbers, uniforms(43, "nli/en/train/7", 3)).any()
    assert not np.isin(numbers, uniforms(42, "nli/en/train/8", 3)).any()
    many = np.concatenate([uniforms(0, str(i), 20) for i in range(500)])
    assert many.min() >= 0
    assert many.max() < 1
    np.testing.assert_allclose(np.histogram(many, 10, (0, 1))[0] / len(many), 0.1, atol=0.012)


GOLDEN = [0.29500052941533983, 0.5460064270779524, 0.05038413120122409]


def test_hopeless_rows_draw_nothing_or_the_one_token_that_is_possible() -> None:
    """Logits of −inf, one certain token, a tail that float32 cannot see."""
    logits = np.full(V, -np.inf, np.float32)
    logits[5] = 3.0
    rows = drawn(logits, np.array([0.3, 0.999999999]), draws=9, beyond_top=False)
    assert rows.sample_ids[:, 0].tolist() == [5, 5]
    assert rows.sample_counts[:, 0].tolist() == [9, 9]
    assert rows.sample_counts[:, 1:].sum() == 0
    rows = drawn(logits, np.array([0.3]), draws=9, beyond_top=True)
    assert rows.sample_counts.sum() == 0
    logits = np.full(V, -150.0, np.float32)
    logits[:3] = [3.0, 2.0, 1.0]
    rows = drawn(logits, np.array([0.3]), draws=9, beyond_top=True)
    assert rows.sample_counts.sum() == 0  # less than e^-60


def sampled_rows(answer_ids: np.ndarray, kind: str, draws: int, top_k: int, *, seed: int = 0) -> TeacherRows:
    """The stand-in teacher's rows with draws from its own logits."""
    rng = np.random.default_rng([seed, len(answer_ids), *answer_ids.tolist()])
    logits = torch.from_numpy(rng.normal(0, 3, (len(answer_ids), stores.VOCAB_SIZE)).astype(np.float32))
    rows = signal(logits, torch.from_numpy(answer_ids.astype(np.int64)), top_k, stores.TOKENIZER_SIZE)
    sampling = Sampling(draws, kind == "hybrid", rng.random(len(answer_ids)))
    return add_samples(rows, logits, sampling, stores.TOKENIZER_SIZE)


EXAMPLES = stores.records(20)


def build(url: str, kind: str, *, draws: int, top_k: int, encoding: str) -> TeacherRows:
    """A store of the stand-in's rows; returns them in store order."""
    spec: StoreSpec = stores.spec(top_k=top_k, encoding=encoding, signal=kind, draws=draws, shard_tokens=64)
    parts = []
    with open_builder(url, spec, EXAMPLES, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("zeroshot", {}, {})
        for shard in range(builder.plan.shards):
            members = [EXAMPLES[i] for i in builder.plan.examples_of(shard)]
            rows = sampled_rows(np.concatenate([np.asarray(r.answer_ids) for r in members]), kind, draws, top_k)
            builder.write_shard("zeroshot", shard, rows)
            parts.append(rows)
    return concatenate(parts)


def by_id(rows: TeacherRows) -> tuple[np.ndarray, np.ndarray]:
    """Distinct tokens and counts in one order, whichever they were stored in."""
    ids = np.where(rows.sample_counts > 0, rows.sample_ids, np.iinfo(np.int32).max)
    order = np.argsort(ids, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(rows.sample_counts, order, 1)


@pytest.mark.parametrize("encoding", ["compact", "float16", "exact"])
@pytest.mark.parametrize(("kind", "top_k"), [("sampled", 1), ("hybrid", 12), ("hybrid", 17)])
def test_a_store_gives_back_what_was_drawn(tmp_path: Path, kind: str, top_k: int, encoding: str) -> None:
    url = str(tmp_path / "store")
    written = build(url, kind, draws=23, top_k=top_k, encoding=encoding)
    store = TeacherStore.open(url)
    assert (store.info.signal, store.info.draws) == (kind, 23)
    read = store.read(range(len(store.examples)), "zeroshot")
    for ours, theirs in zip(by_id(read), by_id(written), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(read.sample_log_mass, written.sample_log_mass, atol=1 / 1024 + 1e-6)
    assert verify(url) == []
    if top_k > 1:  # a part of the ranks is a plain top-k signal
        assert store.read([0], "zeroshot", top_k - 1).sample_ids.shape == (len(EXAMPLES[0].answer_ids), 0)


@settings(max_examples=40, deadline=None)
@example(6, 7, 1142986, 30.0)  # a padding row of the lm_head takes all the probability
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 30.0]))
def test_any_draws_survive_the_round_trip(draws: int, tokens: int, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, spread, (tokens, stores.VOCAB_SIZE)).astype(np.float32))
    rows = signal(logits, torch.zeros(tokens, dtype=torch.long), 1, stores.TOKENIZER_SIZE)
    rows = add_samples(rows, logits, Sampling(draws, False, rng.random(tokens)), stores.TOKENIZER_SIZE)
    assert not list(sample_problems(rows, "sampled", draws, stores.TOKENIZER_SIZE, slack=1e-3))
    vocabulary, compact = stores.vocabulary(), ENCODINGS["compact"]
    again = decode_samples(rows, encode_samples(rows, vocabulary, compact), vocabulary, compact)
    for ours, theirs in zip(by_id(again), by_id(rows), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: replace(r, sample_counts=r.sample_counts + 1), "add up to 23"),
        (lambda r: replace(r, sample_ids=r.sample_ids + stores.TOKENIZER_SIZE), "sample_ids: expected 0 to 499"),
        (lambda r: replace(r, sample_ids=r.sample_ids * 0), "a token twice|not drawn as often"),
        (lambda r: replace(r, sample_log_mass=r.sample_log_mass + 1), "sample_mass"),
        (lambda r: replace(r, sample_ids=r.sample_ids[:, :5], sample_counts=r.sample_counts[:, :5]), "draws: expected"),
        (lambda r: replace(r, sample_ids=(r.sample_ids + 7) % 500), "not drawn as often"),
    ],
)
def test_draws_that_nobody_made_are_refused(tmp_path: Path, damage: object, message: str) -> None:
    spec = stores.spec(top_k=1, signal="sampled", draws=23)
    with open_builder(str(tmp_path / "s"), spec, EXAMPLES, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("zeroshot", {}, {})
        members = [EXAMPLES[i] for i in builder.plan.examples_of(0)]
        rows = sampled_rows(np.concatenate([np.asarray(r.answer_ids) for r in members]), "sampled", 23, 1)
        with pytest.raises(StoreError, match=message):
            builder.write_shard("zeroshot", 0, damage(rows))  # type: ignore[operator]
        assert 0 in builder.missing_shards("zeroshot")


def test_a_hybrid_draw_among_the_ranks_is_refused() -> None:
    rows = sampled_rows(np.arange(5), "hybrid", 9, 12)
    wrong = replace(rows, sample_ids=np.where(rows.sample_counts > 0, rows.token_ids[:, :9], 0))
    assert any("among the stored ranks" in p for p in sample_problems(wrong, "hybrid", 9, 500, slack=1e-3))
    assert not list(sample_problems(rows, "hybrid", 9, 500, slack=1e-3))


def test_settings_that_cannot_draw_are_refused() -> None:
    for overrides, message in (
        (["teacher.signal=some"], "teacher.signal: expected one of topk, sampled, hybrid"),
        (["teacher.draws=0"], "teacher.draws"),
        (["teacher.draws=5000"], "teacher.draws: expected at most 4096"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config([], ["model.name=x", *overrides])
