"""Sequences with answer spans: positions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitbank.sequences import AnsweredSequence, Span


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
    """Ids, spans, and a mask made one token at a time."""
    ids, spans, mask = [], [], []
    for _ in range(draw(st.integers(1, 5))):
        context = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4))
        answer = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4))
        spans.append((len(ids) + len(context), len(answer)))
        ids += context + answer
        mask += [False] * len(context) + [True] * len(answer)
    return ids, spans, mask


@given(sequences())
def test_positions_are_those_of_a_loop_over_tokens(drawn: tuple[list[int], list[tuple[int, int]], list[bool]]) -> None:
    ids, spans, mask = drawn
    sequence = AnsweredSequence(ids, spans)
    at = [i for i, answer in enumerate(mask) if answer]
    assert sequence.answer_positions.tolist() == at
    assert sequence.logit_positions.tolist() == [i - 1 for i in at]
    assert sequence.answer_ids.tolist() == [ids[i] for i in at]
    assert sequence.context_ids.tolist() == [token for i, token in enumerate(ids) if i not in at]
    assert sequence.answer_length == len(at)
    assert sequence.prompt_ids.tolist() == ids[: at[0]]
    assert AnsweredSequence.interleaved(sequence.context_ids, sequence.answer_ids, spans) == sequence


def test_one_answer_is_one_span() -> None:
    sequence = AnsweredSequence.answering([5, 6, 7], [8, 9])
    assert sequence.spans == (Span(3, 2),)
    assert sequence.ids.tolist() == [5, 6, 7, 8, 9]
    assert sequence.ids.dtype == np.int32


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [(0, 4)],  # nothing before it
        [(1, 0), (2, 2)],  # empty
        [(1, 2), (3, 1)],  # touching: one span
        [(2, 2), (1, 1)],  # descending
        [(1, 2)],  # context behind it
        [(1, 4)],  # beyond the end
    ],
)
def test_spans_that_are_no_answers_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="spans: expected"):
        AnsweredSequence([1, 2, 3, 4], spans)
