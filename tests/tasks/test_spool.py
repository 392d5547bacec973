"""Examples in a file, random subsets of a stream: what comes back is what in-memory lists gave."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.errors import TaskError
from logitbank.tasks import Example
from logitbank.tasks.conversations import Conversation
from logitbank.tasks.spool import Spool, digest_of
from logitbank.tasks.subsets import Drawn, random_order, rank

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def example(number: int, **fields: Any) -> Example:
    return Example(f"nli/en/train/{number}", "nli", "en", fields, f"answer {number}")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(), JSON), min_size=1, max_size=5), st.randoms())
def test_examples_come_back_as_they_were_in_any_order(fields: list[dict[str, Any]], random: Any) -> None:
    examples = [example(number, **{f"x{key}": value for key, value in it.items()}) for number, it in enumerate(fields)]
    spool = Spool()
    positions = [spool.add(it) for it in examples]
    random.shuffle(positions)
    assert [spool[position] for position in positions] == [examples[position] for position in positions]
    spool.add(example(99))  # behind what was read
    assert spool[len(examples)] == example(99)
    assert spool.digest(np.array(positions)) == digest_of(examples[position] for position in positions)
    spool.close()


def test_conversations_come_back_as_conversations() -> None:
    user, answer = {"role": "user", "content": "half \ud83d"}, {"role": "assistant", "content": "yes", "tool_calls": []}
    asked = Conversation((user, answer), ({"name": "look"},), (answer, answer))
    spool = Spool()
    spool.add(example(1, conversation=asked))
    assert spool[0].fields["conversation"] == asked


def test_a_field_of_another_kind_is_one_clear_error() -> None:
    with pytest.raises(TaskError, match=r"nli/en/train/1: field when: expected text, numbers, .* got set"):
        Spool().add(example(1, when=[{1, 2}]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=4000), st.integers(0, 60))
def test_the_lowest_of_a_stream_are_those_that_sorting_it_gives(ranks: list[int], limit: int) -> None:
    drawn = Drawn(limit)
    remembered = 0
    for position, value in enumerate(ranks):
        if drawn.wants(value):
            drawn.add(value, position)
            remembered += 1
    expected = heapq.nsmallest(limit, enumerate(ranks), key=lambda item: item[1])
    assert drawn.positions().tolist() == [position for position, _ in expected]


def test_most_of_a_long_stream_is_not_even_kept() -> None:
    drawn, kept = Drawn(100), 0
    for position in range(100_000):
        if drawn.wants(value := rank(str(position))):
            drawn.add(value, position)
            kept += 1
    assert kept < 10_000


def test_a_random_order_is_that_of_the_hashes() -> None:
    assert random_order(500, "7/x").tolist() == sorted(range(500), key=lambda index: rank(f"7/x/{index}"))
