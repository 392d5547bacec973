"""A signal that leaves through the largest entries of a row is the signal that was read, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitbank.storage import TeacherRows
from logitbank.teacher_cache.engines.carriers import CARRIERS, pack, unpack
from logitbank.teacher_cache.signal import read_signal, signal

ROWS, TOKENS = 48, 41  # 7 rows of padding


def _through(logits: torch.Tensor, gold: torch.Tensor, top_k: int) -> tuple[TeacherRows, torch.Tensor]:
    """What comes out of rows that were packed, and the tokens that greedy decoding would generate."""
    packed = logits.clone()
    pack(packed, read_signal(logits, gold, top_k + CARRIERS, TOKENS), gold, top_k, TOKENS)
    values, token_ids = packed.topk(top_k + CARRIERS, dim=-1)
    return unpack(token_ids.to(torch.int32).numpy(), values.numpy()), packed.argmax(dim=-1)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, TOKENS - CARRIERS),
    st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    st.sampled_from([0.0, -1e4, 1e4]),
)
def test_the_signal_passes_through_bit_for_bit(seed: int, top_k: int, spread: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, ROWS, generator=generator) * spread + shift
    gold = torch.randint(TOKENS, (30,), generator=generator)
    gold[:10] = logits[:10, :TOKENS].argmax(dim=-1)  # as a good teacher has it
    expected = signal(logits, gold, top_k, TOKENS)
    rows, generated = _through(logits, gold, top_k)
    for field in ("logits", "logsumexp", "entropy", "gold_logit", "gold_rank"):
        np.testing.assert_array_equal(getattr(rows, field), getattr(expected, field), err_msg=field)
    # Equal logits have no order of their own.
    drawn = np.take_along_axis(logits.numpy(), rows.token_ids.astype(np.int64), axis=1)
    np.testing.assert_array_equal(drawn, expected.logits)
    assert all(len(set(row)) == top_k for row in rows.token_ids.tolist())
    assert (generated == gold).all()
    rows.check(TOKENS, ROWS)


def test_equal_logits_and_masked_tokens_pass_through() -> None:
    logits = torch.full((3, ROWS), -torch.inf)
    logits[0, :5] = 2.0
    logits[1] = 1.0
    logits[2, 40] = -50.0
    gold = torch.tensor([3, 17, 2])
    rows, generated = _through(logits, gold, 9)
    np.testing.assert_array_equal(rows.logits, signal(logits, gold, 9, TOKENS).logits)
    assert set(rows.token_ids[0, :5]) == set(range(5))
    assert all(len(set(row)) == 9 for row in rows.token_ids.tolist())
    assert rows.gold_logit.tolist() == [2.0, 1.0, -np.inf]
    assert generated.tolist() == gold.tolist()


def test_other_entries_are_refused() -> None:
    with pytest.raises(RuntimeError, match="logits processor"):
        unpack(np.zeros((2, 12), np.int32), np.linspace(9, 1, 24, dtype=np.float32).reshape(2, 12))
