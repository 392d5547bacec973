"""What is kept of a row of logits: against plain float64 formulas and a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.teacher_cache import signal
from logitbank.teacher_cache.signal import GROUP, exact_top_k, read_signal


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, GROUP - 1), st.sampled_from([1.0, 0.2]))
def test_top_k_is_that_of_a_full_sort(seed: int, top_k: int, rest: int, grain: float) -> None:
    """Ties (a coarse grain) may name another id of the same value, never another value or an id twice."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, 5 * top_k * GROUP + rest, generator=generator) / grain).round() * grain
    values, ids = exact_top_k(logits, top_k)
    assert torch.equal(values, logits.sort(dim=-1, descending=True).values[:, :top_k])
    assert torch.equal(values, logits.gather(1, ids))
    assert all(len(set(row)) == top_k for row in ids.tolist())


@pytest.mark.parametrize("places", [range(0, 5), range(7, 500, 100), range(1600, 1605)])
def test_top_k_finds_all_in_neighbours_in_one_group_and_behind_the_last(places: range) -> None:
    logits = torch.zeros(1, 100 * GROUP + 5)
    logits[0, places] = torch.tensor([1.0, 5.0, 3.0, 4.0, 2.0])
    _, ids = exact_top_k(logits, 5)
    assert ids[0].tolist() == [places[i] for i in (1, 3, 2, 4, 0)]


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_scalars_equal_the_float64_formulas(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocab_size, tokenizer_size = 7, 3000, 2990
    monkeypatch.setitem(signal.LOGIT_ELEMENTS, "cpu", rows_at_once * vocab_size)
    logits = torch.randn(tokens, vocab_size, generator=torch.Generator().manual_seed(0)) * 4
    logits[1, 5:50] = -torch.inf
    logits[2, tokenizer_size:] = 30.0  # padding rows weigh in the sum and never rank
    order = logits[:, :tokenizer_size].argsort(descending=True)
    gold = torch.tensor([0, 17, 2989, 3, int(order[4, 7]), int(order[5, 8]), int(order[6, 0])])  # K - 1, K and 0
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
    assert found.gold_rank_T[4:].tolist() == [7, 8, 0]
    assert (found.token_ids_TK < tokenizer_size).all()


@pytest.mark.parametrize("column", [3, 2995])
def test_a_logit_that_is_no_number_is_seen_in_the_sums(column: int) -> None:
    logits = torch.randn(4, 3000)
    logits[2, column] = torch.nan
    found = read_signal(logits, torch.arange(4), 8, 2990)
    assert found.logsumexp_T.isnan().tolist() == [False, False, True, False]
    assert found.entropy_T.isnan().tolist() == [False, False, True, False]
