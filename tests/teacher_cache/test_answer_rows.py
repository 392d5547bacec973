"""Rows of answer tokens from hidden states, a block of columns at a time: against float64 and a full sort."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from logitbank.models.head import Head, unchanged
from logitbank.teacher_cache import answer_rows
from logitbank.teacher_cache.answer_rows import AnswerReader, Unread
from logitbank.teacher_cache.sampling import Sampling

VOCAB, TOKENIZER, WIDTH, TOP_K, TOKENS = 3000, 2905, 8, 8, 23
CAP = 30.0


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts of eight rows at most, and blocks of 400 columns: the tokenizer ends inside the last but one."""
    monkeypatch.setattr(answer_rows, "CPU_ROWS", 10)
    monkeypatch.setattr(answer_rows, "CPU_BLOCK_ELEMENTS", 8 * 400)


def made(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weights and gold tokens; products of such integers are exact in whatever order they are summed."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-3, 4, (TOKENS, WIDTH), generator=generator).float()
    weight = torch.randint(-8, 9, (VOCAB, WIDTH), generator=generator).float() / 8
    return hidden, weight, torch.randint(0, VOCAB, (TOKENS,), generator=generator)


def capped(logits: torch.Tensor) -> torch.Tensor:
    return CAP * torch.tanh(logits / CAP)


@pytest.mark.numeric
@pytest.mark.parametrize("excluded", [(), (0, 5, 399, 400, 2904)])
@pytest.mark.parametrize(("biased", "transform"), [(False, unchanged), (True, unchanged), (False, capped)])
def test_rows_are_those_of_all_logits_in_float64(
    biased: bool, transform: Callable[[torch.Tensor], torch.Tensor], excluded: tuple[int, ...]
) -> None:
    hidden, weight, gold = made()
    bias = torch.arange(VOCAB).remainder(7) / 4 if biased else None
    reader = AnswerReader(Head.of_weight(weight, bias, transform), VOCAB, TOKENIZER, excluded)
    reader.read(Unread(hidden[:3] * 2, gold[:3]), TOP_K)  # what memory holds from the last call does not matter
    rows = reader.read(Unread(hidden, gold), TOP_K)

    logits = transform(hidden.double() @ weight.double().T + (0 if bias is None else bias.double()))
    logsumexp = logits.logsumexp(dim=1)
    entropy = torch.special.entr((logits - logsumexp[:, None]).exp()).sum(dim=1)
    of_gold = logits.gather(1, gold[:, None])
    np.testing.assert_allclose(rows.logsumexp, logsumexp, rtol=1e-6)
    np.testing.assert_allclose(rows.entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(rows.gold_logit, of_gold[:, 0], rtol=1e-6)
    real = logits[:, :TOKENIZER].index_fill(1, torch.tensor(excluded, dtype=torch.long), -torch.inf)
    # Equal logits round alike: what is larger in float64 by a thousandth of a step is larger in float32.
    np.testing.assert_array_equal(rows.gold_rank, (real > of_gold + 1e-5).sum(dim=1))
    np.testing.assert_allclose(rows.logits, real.sort(dim=1, descending=True).values[:, :TOP_K], rtol=1e-6)
    ids = torch.from_numpy(rows.token_ids).long()
    np.testing.assert_allclose(rows.logits, real.gather(1, ids), rtol=1e-6)
    assert all(len(set(row)) == TOP_K for row in ids.tolist())


def test_a_head_that_is_no_matrix_is_called() -> None:
    hidden, weight, gold = made()
    calls = []

    def project(given: torch.Tensor) -> torch.Tensor:
        calls.append(len(given))
        return given @ weight.T

    apart = AnswerReader(Head.of_weight(weight), VOCAB, TOKENIZER).read(Unread(hidden, gold), TOP_K)
    called = AnswerReader(Head(project), VOCAB, TOKENIZER).read(Unread(hidden, gold), TOP_K)
    assert calls == [8, 8, 7]
    np.testing.assert_array_equal(called.logits, apart.logits)
    np.testing.assert_allclose(called.logsumexp, apart.logsumexp, rtol=1e-6)


def test_draws_are_those_from_all_logits() -> None:
    hidden, weight, gold = made()
    numbers = np.random.default_rng(0).random(TOKENS)
    excluded = (1, 2, 3)
    together = AnswerReader(Head.of_weight(weight), VOCAB, TOKENIZER, excluded)
    rows = together.read(Unread(hidden, gold, Sampling(20, False, numbers)), TOP_K)
    logits = hidden @ weight.T
    whole = answer_rows.rows_of_logits(
        logits, gold, TOP_K, TOKENIZER, torch.tensor(excluded), Sampling(20, False, numbers)
    )
    np.testing.assert_array_equal(rows.sample_ids, whole.sample_ids)
    np.testing.assert_array_equal(rows.sample_counts, whole.sample_counts)
    np.testing.assert_allclose(rows.sample_log_mass, whole.sample_log_mass, atol=1e-6)


@pytest.mark.parametrize("ruled_out", [slice(400, 800), slice(0, 2999)])
def test_logits_of_minus_infinity_add_nothing(ruled_out: slice) -> None:
    """A whole block of them, and rows where one logit is left."""
    hidden, weight, _ = made()
    bias = torch.zeros(VOCAB)
    bias[ruled_out] = -torch.inf
    gold = torch.full((TOKENS,), 2999)
    rows = AnswerReader(Head.of_weight(weight, bias), VOCAB, VOCAB).read(Unread(hidden, gold), 1)
    logits = hidden.double() @ weight.double().T + bias.double()
    logsumexp = logits.logsumexp(dim=1)
    np.testing.assert_allclose(rows.logsumexp, logsumexp, rtol=1e-6)
    np.testing.assert_allclose(
        rows.entropy, torch.special.entr((logits - logsumexp[:, None]).exp()).sum(dim=1), atol=1e-5
    )


def test_a_logit_that_is_no_number_is_seen() -> None:
    hidden, weight, gold = made()
    hidden[4, 0] = torch.nan
    rows = AnswerReader(Head.of_weight(weight), VOCAB, TOKENIZER).read(Unread(hidden, gold), TOP_K)
    assert np.flatnonzero(np.isnan(rows.logsumexp)).tolist() == [4]
    assert np.flatnonzero(np.isnan(rows.entropy)).tolist() == [4]


def test_bfloat16_heads_give_bfloat16_logits() -> None:
    hidden, weight, gold = made()
    hidden, weight = (hidden / 3).bfloat16(), weight.bfloat16()
    rows = AnswerReader(Head.of_weight(weight), VOCAB, TOKENIZER).read(Unread(hidden, gold), TOP_K)
    logits = torch.nn.functional.linear(hidden, weight)[:, :TOKENIZER]
    expected = logits.float().sort(dim=1, descending=True).values[:, :TOP_K]
    np.testing.assert_allclose(rows.logits, expected, rtol=2**-7)  # one step: sums may round otherwise in blocks
    np.testing.assert_array_equal(torch.from_numpy(rows.logits).bfloat16().float(), rows.logits)
    assert not np.array_equal(rows.logsumexp, torch.from_numpy(rows.logsumexp).bfloat16().float())


def test_a_gpu_reads_each_batch_at_once_so_that_a_smaller_budget_takes_less_memory() -> None:
    reader = AnswerReader(Head.of_weight(torch.zeros(VOCAB, 4)), VOCAB, TOKENIZER)
    assert reader.enough(torch.device("cuda")) == 1
    assert reader.enough(torch.device("cpu")) == 40
