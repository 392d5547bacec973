"""What is kept of a row of logits: against plain float64 formulas and a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache import signal
from teacher_cache.signal import BLOCK, exact_top_k, read_signal


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, BLOCK - 1), st.sampled_from([1.0, 0.2]))
def test_top_k_is_that_of_a_full_sort(seed: int, top_k: int, rest: int, grain: float) -> None:
    """Ties (a coarse grain) may name another id of the same value, never another value or an id twice."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, 5 * top_k * BLOCK + rest, generator=generator) / grain).round() * grain
    values, ids = exact_top_k(logits, top_k)
    assert torch.equal(values, logits.sort(dim=-1, descending=True).values[:, :top_k])
    assert torch.equal(values, logits.gather(1, ids))
    assert all(len(set(row)) == top_k for row in ids.tolist())


@pytest.mark.parametrize("place", ["first", "last block", "behind the last block"])
def test_top_k_finds_all_in_one_place(place: str) -> None:
    logits = torch.zeros(1, 100 * BLOCK + 5)
    start = {"first": 0, "last block": 99 * BLOCK, "behind the last block": 100 * BLOCK}[place]
    logits[0, start : start + 5] = torch.tensor([1.0, 5.0, 3.0, 4.0, 2.0])
    _, ids = exact_top_k(logits, 5)
    assert ids[0].tolist() == [start + 1, start + 3, start + 2, start + 4, start]


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_scalars_equal_the_float64_formulas(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocab_size, tokenizer_size = 7, 3000, 2990
    monkeypatch.setitem(signal.LOGIT_ELEMENTS, "cpu", rows_at_once * vocab_size)
    logits = torch.randn(tokens, vocab_size, generator=torch.Generator().manual_seed(0)) * 4
    logits[1, 5:50] = -torch.inf
    logits[2, tokenizer_size:] = 30.0  # padding rows weigh in the sum and never rank
    gold = torch.tensor([0, 17, 2989, 3, 4, 5, int(logits[6, :tokenizer_size].argmax())])
    before = logits.clone()
    found = read_signal(logits, gold, 8, tokenizer_size)
    assert torch.equal(logits, before)
    exact = logits.double().numpy()
    logsumexp = np.log(np.exp(exact).sum(axis=1))
    p = np.exp(exact - logsumexp[:, None])
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=1)
    of_gold = exact[np.arange(tokens), gold]
    assert found.logsumexp_T.numpy() == pytest.approx(logsumexp, abs=1e-5)
    assert found.entropy_T.numpy() == pytest.approx(entropy, abs=1e-5)
    assert found.gold_logit_T.numpy() == pytest.approx(of_gold)
    ranks = (exact[:, :tokenizer_size] > of_gold[:, None]).sum(axis=1)
    assert found.gold_rank_T.tolist() == ranks.tolist()
    assert found.gold_rank_T[6] == 0
    assert (found.token_ids_TK < tokenizer_size).all()
