"""Shard planning: no example straddles a shard, nothing is lost, order is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.storage import StoreError
from logitbank.storage.teacher_store.layout import plan_shards


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=120),
    st.integers(1, 6),
    st.integers(1, 16),
)
def test_every_example_lies_whole_in_one_shard_in_order(lengths: list[int], chunks: int, chunk_tokens: int) -> None:
    shard_tokens = max(chunks * chunk_tokens, -(-40 // chunk_tokens) * chunk_tokens)
    plan, chunk = plan_shards(lengths, shard_tokens, chunk_tokens)
    starts, ends = plan.answer_start, plan.answer_start + plan.answer_length
    assert plan.answer_length.tolist() == lengths
    assert (starts[1:] >= ends[:-1]).all()
    assert (starts // plan.shard_tokens == (ends - 1) // plan.shard_tokens).all()
    assert plan.shard_tokens % chunk == 0
    assert plan.shard_tokens <= shard_tokens
    covered = [example for shard in range(plan.shards) for example in plan.examples_of(shard)]
    assert covered == list(range(len(lengths)))
    for shard in range(plan.shards):
        members = plan.examples_of(shard)
        first = shard * plan.shard_tokens
        assert starts[members.start] == first
        assert ends[members.stop - 1] == first + plan.used_rows(shard)
        assert all(plan.shard_of(example) == shard for example in members)
    # First fit in order: the example that opens a shard had no room in the one before.
    for shard in range(1, plan.shards):
        assert plan.used_rows(shard - 1) + lengths[plan.examples_of(shard).start] > plan.shard_tokens


def test_shards_grow_by_whole_chunks_to_hold_the_longest_answer() -> None:
    plan, chunk = plan_shards([3, 70, 60, 20], 64, 16)
    assert (plan.shard_tokens, chunk) == (80, 16)
    assert [list(plan.examples_of(shard)) for shard in range(plan.shards)] == [[0, 1], [2, 3]]
    assert plan_shards([3, 64, 60], 64, 16)[0].shard_tokens == 64


@pytest.mark.parametrize(
    ("lengths", "shard", "chunk", "message"),
    [
        ([], 64, 16, "at least one"),
        ([3, 0], 64, 16, "answer length"),
        ([40, 40], 60, 16, "multiple"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(lengths: list[int], shard: int, chunk: int, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        plan_shards(np.array(lengths), shard, chunk)
