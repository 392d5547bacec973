"""Which rows a step has, in which order their answers stand, and what changes places with them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitbank.preference import PackedPair, Pair
from logitbank.sequences import Span
from logitbank.student_train.classifier.batch import PackedPairs, TrainingRows
from logitbank.student_train.classifier.order import PairOrder, Visit
from logitbank.student_train.classifier.rows import swaps
from logitbank.tasks.preference import PairPacker
from tests import tiny
from tests.student_train.preferences import TRAIN


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 3))
def test_every_epoch_has_every_row_once_and_steps_are_functions_of_their_number(
    rows: int, batch_size: int, seed: int
) -> None:
    everywhere = np.ones(rows, np.bool_)
    order = PairOrder(everywhere, batch_size, seed)
    steps = [order.step(step) for step in range(-(-3 * rows // batch_size))]
    stream = [visit for step in steps for visit in step]
    for epoch in range(3):
        assert sorted(visit.row for visit in stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    fresh = PairOrder(everywhere, batch_size, seed)
    for step in reversed(range(len(steps))):  # as after a resume, in any order
        assert fresh.step(step) == steps[step]


def test_a_row_is_swapped_in_every_second_epoch_and_half_of_them_begin_so() -> None:
    rows = 400
    swapping = np.arange(rows) % 2 == 0
    order = PairOrder(swapping, 8, seed=3)
    epochs = [dict(tuple(visit) for step in range(n * 50, n * 50 + 50) for visit in order.step(step)) for n in range(3)]
    for row in range(rows):
        shown = [epoch[row] for epoch in epochs]
        assert shown in ([True, False, True], [False, True, False]) if swapping[row] else shown == [False] * 3
    begin = Counter(epochs[0][row] for row in range(0, rows, 2))
    assert 70 < begin[True] < 130  # of 200, within four standard deviations
    assert list(epochs[0]) != list(epochs[1])  # a fresh permutation
    other = PairOrder(swapping, 8, seed=4)
    assert [visit.row for visit in other.step(0)] != [visit.row for visit in order.step(0)]


def training_rows(pairs: list[Pair]) -> TrainingRows:
    packed = list(PairPacker(tiny.chat_tokenizer(), max_tokens=150).pack_all(pairs))
    generator = np.random.default_rng(0)
    return TrainingRows(
        packed=PackedPairs(packed),
        target_NC=np.array([pair.target for pair in pairs], dtype=np.float32),
        teacher_NC=generator.dirichlet([1, 1, 1], len(pairs)).astype(np.float32),
        taught_N=np.ones(len(pairs), np.bool_),
        external_N=np.arange(len(pairs)) >= len(pairs) - 2,
        prompt_key_N=np.zeros(len(pairs), np.uint64),
    )


def test_swapping_exchanges_answers_labels_and_the_teachers_words() -> None:
    """A row shown swapped is the row of the pair whose answers were given the other way round."""
    pairs = [*TRAIN[:5], Pair("preference/und/train/long", ("p" * 90,), ("a" * 200,), ("bc",), (0.5, 0.3, 0.2))]
    rows, other = training_rows(pairs), training_rows([pair.swapped() for pair in pairs])
    got = rows.batch([Visit(row, True) for row in range(len(pairs))])
    expected = other.batch([Visit(row, False) for row in range(len(pairs))])
    for name, tensor in vars(expected.pairs).items():
        assert torch.equal(vars(got.pairs)[name], tensor), name
    torch.testing.assert_close(got.target_BC, expected.target_BC)
    plain = rows.batch([Visit(row, False) for row in range(len(pairs))])
    assert torch.equal(got.teacher_BC, plain.teacher_BC[:, [1, 0, 2]])
    assert not torch.equal(got.pairs.input_ids_BL, plain.pairs.input_ids_BL)
    assert torch.equal(plain.target_BC, torch.tensor([pair.target for pair in pairs]))


@pytest.mark.parametrize(("swap", "expected"), [("none", [0, 0, 0]), ("external", [0, 1, 1]), ("all", [1, 1, 1])])
def test_which_rows_are_swapped_is_as_the_configuration_says(swap: str, expected: list[int]) -> None:
    assert swaps(training_rows(TRAIN[:3]), swap).tolist() == list(map(bool, expected))


def test_packed_pairs_come_back_as_they_were() -> None:
    generator = np.random.default_rng(1)
    pairs = [
        PackedPair(generator.integers(0, 9, 9 + n).astype(np.int32), Span(2, n + 1), Span(4 + n, 3), cut=n)
        for n in range(4)
    ]
    packed = PackedPairs(pairs)
    assert packed.lengths.tolist() == [9, 10, 11, 12]
    assert packed.cut == 3
    for pair, again in zip(pairs, packed, strict=True):
        assert pair.ids.tolist() == again.ids.tolist()
        assert pair[1:] == again[1:]
        assert pair.swapped().swapped().ids.tolist() == pair.ids.tolist()
    assert len(PackedPairs([])) == 0
