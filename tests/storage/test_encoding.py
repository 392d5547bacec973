"""Every encoding gives back what went in, within its stated bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.registry import ENCODINGS
from logitbank.storage import StoreError, TeacherRows, Vocabulary
from logitbank.storage.teacher_store.layout import RANK_BLOCK

VOCAB = 300
VALUE_BOUND = 5 / 128  # nats: half of compact's step


@st.composite
def teacher_signal(draw: st.DrawFn) -> TeacherRows:
    """Rows as any teacher may produce them: ties, huge and tiny ranges, -inf below the top, K from 1 to V."""
    tokens = draw(st.integers(1, 6))
    top_k = draw(st.sampled_from([1, 2, 63, 64, 65, 100, 128, 200, VOCAB]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 400.0]))
    offset = draw(st.sampled_from([0.0, -40.0, 1000.0]))
    logits = (rng.normal(0, 1, (tokens, VOCAB)) * scale + offset).astype(np.float32)
    if draw(st.booleans()):
        logits = np.rint(logits)  # ties
    impossible = draw(st.sampled_from([0, 1, VOCAB // 2, VOCAB - 1]))
    for row in logits:
        row[rng.choice(VOCAB, impossible, replace=False)] = -np.inf
    return signal_of(logits, rng.integers(0, VOCAB, tokens), top_k)


def signal_of(logits: np.ndarray, gold: np.ndarray, top_k: int) -> TeacherRows:
    """The signal of full logits (T, VOCAB), all scalars in float64 before rounding."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp(wide - peak).sum(axis=1)) + peak[:, 0]
    log_p = wide - logsumexp[:, None]
    entropy = -(np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0)).sum(axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    gold_logit = logits[np.arange(len(gold)), gold]
    return TeacherRows(
        token_ids=order.astype(np.int32),
        logits=np.take_along_axis(logits, order, axis=1),
        logsumexp=logsumexp.astype(np.float32),
        entropy=np.maximum(entropy, 0).astype(np.float32),
        gold_logit=gold_logit,
        gold_rank=(logits > gold_logit[:, None]).sum(axis=1).astype(np.int32),
    )


def round_trip(name: str, rows: TeacherRows, top_k: int | None = None, seed: int = 0) -> TeacherRows:
    """Encode all ranks, decode the first `top_k` from as many blocks as they need."""
    stored_k = rows.token_ids.shape[1]
    top_k = stored_k if top_k is None else top_k
    encoding = ENCODINGS[name]
    arrays = encoding.encode(rows, vocabulary(seed, rows))
    kept = {}
    for spec in encoding.arrays(stored_k):
        values = arrays[spec.name]
        assert values.dtype == spec.dtype
        assert values.shape == ((len(rows),) if spec.width is None else (len(rows), spec.width))
        columns = spec.columns_for(top_k, stored_k)
        kept[spec.name] = values if columns is None else values[:, :columns]
        if columns is not None:
            assert columns == (-(-top_k // 16) if spec.per_block else min(-(-top_k // 16) * 16, stored_k))
    return encoding.decode(kept, top_k, vocabulary(seed, rows))


def vocabulary(seed: int, rows: TeacherRows) -> Vocabulary:
    """A numbering whose contexts are the top tokens of every other row, with fronts of 20 random tokens."""
    rng = np.random.default_rng(seed)
    contexts = np.unique(rows.token_ids[::2, 0])
    fronts = np.stack([np.arange(20), *(rng.permutation(VOCAB)[:20] for _ in contexts)])
    return Vocabulary(rng.permutation(VOCAB).astype(np.int32), contexts, fronts.astype(np.uint32))


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: float) -> None:
    """Equal infinities, and finite values within the bound plus float32's own rounding."""
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected))
    finite = np.isfinite(expected)
    slack = bound + 4 * np.spacing(np.abs(expected[finite]).astype(np.float32)).astype(np.float64)
    error = np.abs(actual[finite].astype(np.float64) - expected[finite].astype(np.float64))
    assert (error <= slack).all(), float((error - slack).max())


@settings(max_examples=60, deadline=None)
@given(teacher_signal())
def test_exact_gives_back_every_bit(rows: TeacherRows) -> None:
    again = round_trip("exact", rows)
    for name in ("token_ids", "logits", "logsumexp", "entropy", "gold_logit", "gold_rank"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name), err_msg=name)
    np.testing.assert_allclose(again.log_tail, rows.log_tail, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(teacher_signal())
def test_float16_gives_back_ids_and_rounded_logits(rows: TeacherRows) -> None:
    again = round_trip("float16", rows)
    np.testing.assert_array_equal(again.token_ids, rows.token_ids)
    np.testing.assert_array_equal(again.logits, rows.logits.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(again.logsumexp, rows.logsumexp)


@settings(max_examples=120, deadline=None)
@given(teacher_signal())
def test_compact_keeps_its_bounds(rows: TeacherRows) -> None:
    again = round_trip("compact", rows)
    np.testing.assert_array_equal(again.logits[:, 0], rows.logits[:, 0])
    assert_within(again.logits, rows.logits, VALUE_BOUND)
    assert (again.logits[:, 1:] <= again.logits[:, :-1]).all()
    for start in range(0, rows.token_ids.shape[1], RANK_BLOCK):
        block = slice(start, start + RANK_BLOCK)
        np.testing.assert_array_equal(
            np.sort(again.token_ids[:, block], axis=1), np.sort(rows.token_ids[:, block], axis=1)
        )
    np.testing.assert_array_equal(again.gold_rank, rows.gold_rank)
    assert_within(again.logsumexp, rows.logsumexp, 1 / 512)
    assert_within(again.gold_logit, rows.gold_logit, 1 / 512)
    assert_within(again.entropy, rows.entropy, 1 / 512)
    first = slice(0, RANK_BLOCK)
    np.testing.assert_array_equal(again.token_ids[:, first], rows.token_ids[:, first])


@settings(max_examples=120, deadline=None)
@given(teacher_signal(), st.integers(1, VOCAB))
@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_log_tail_is_what_the_ranks_that_are_read_leave(name: str, rows: TeacherRows, wanted: int) -> None:
    """Against the sum over all other tokens, in float64; a tail below 1e-6 is drowned by float32's logsumexp."""
    wanted = min(wanted, rows.token_ids.shape[1])
    try:
        again = round_trip(name, rows, wanted)
    except StoreError:  # float16 and compact refuse a range that is too wide
        return
    beyond = np.exp(rows.logits[:, wanted:].astype(np.float64) - rows.logsumexp[:, None]).sum(axis=1)
    tail = np.maximum(np.exp(rows.log_tail.astype(np.float64)) + beyond, 1e-6)
    # What is read and not asked for carries the error of its values, the rest that of its own logarithm.
    largest = np.abs(rows.logits[np.isfinite(rows.logits)]).max()
    half_a_step = float(np.spacing(np.float16(largest))) / 2  # of float16, at the largest logit
    bound = {"compact": VALUE_BOUND + 1 / 16, "exact": 0.0, "float16": half_a_step}[name]
    assert (np.abs(again.log_tail - np.log(np.minimum(tail, 1))) <= bound + 0.02).all()


@settings(max_examples=60, deadline=None)
@given(teacher_signal())
def test_compact_gives_each_token_its_own_value(rows: TeacherRows) -> None:
    """Ranks may swap inside a step, values may not move to another token."""
    again = round_trip("compact", rows)
    for position in range(len(rows)):
        true = dict(zip(rows.token_ids[position].tolist(), rows.logits[position].tolist(), strict=True))
        expected = np.array([true[token] for token in again.token_ids[position].tolist()], dtype=np.float32)
        assert_within(again.logits[position], expected, VALUE_BOUND)


@settings(max_examples=60, deadline=None)
@given(teacher_signal(), st.integers(1, VOCAB))
@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_first_ranks_do_not_need_the_rest(name: str, rows: TeacherRows, wanted: int) -> None:
    wanted = min(wanted, rows.token_ids.shape[1])
    whole, first = round_trip(name, rows), round_trip(name, rows, wanted)
    np.testing.assert_array_equal(first.token_ids, whole.token_ids[:, :wanted])
    np.testing.assert_array_equal(first.logits, whole.logits[:, :wanted])


def test_compact_top_token_is_the_teachers_unless_tied_within_a_step() -> None:
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, 7], logits[0, 3] = 5.0, 4.8
    again = round_trip("compact", signal_of(logits, np.array([7]), 64))
    assert again.token_ids[0, :2].tolist() == [7, 3]


@pytest.mark.parametrize("name", ["compact", "float16"])
def test_a_range_too_wide_for_an_encoding_is_refused_not_clipped(name: str) -> None:
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, 0] = 1e6
    with pytest.raises(StoreError, match=r"store\.encoding.*use exact"):
        round_trip(name, signal_of(logits, np.array([0]), 128))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["logits", "logsumexp", "entropy", "gold_logit"])
def test_no_teacher_means_nan_or_infinity(name: str, value: float) -> None:
    rng = np.random.default_rng(0)
    rows = signal_of(rng.normal(0, 1, (3, VOCAB)).astype(np.float32), np.array([1, 2, 3]), 64)
    array = getattr(rows, name)
    array[(1, 5) if array.ndim == 2 else 1] = value
    with pytest.raises(StoreError, match=name):
        rows.check(VOCAB, VOCAB)


def test_minus_infinity_is_legal_below_the_top_only() -> None:
    logits = np.full((2, VOCAB), -np.inf, dtype=np.float32)
    logits[:, 0] = 1.0
    rows = signal_of(logits, np.array([0, 5]), 64)
    rows.check(VOCAB, VOCAB)
    rows.logits[0] = -np.inf
    with pytest.raises(StoreError, match="largest logit"):
        rows.check(VOCAB, VOCAB)
