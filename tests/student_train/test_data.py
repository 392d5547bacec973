"""The order of examples and the tensors made of them."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitbank.configs import Config
from logitbank.sequences import AnsweredSequence
from logitbank.student_train.batch import MicroBatches, collate, micro_batch_loader
from logitbank.student_train.order import ExampleOrder, example_order
from logitbank.student_train.split import BatchPlan, Indices, Split


def order_of(counts: list[int], seed: int = 0, shard_size: int = 5) -> ExampleOrder:
    total = sum(counts)
    owner = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    tasks = {f"task{i}": np.flatnonzero(owner == i) for i in range(len(counts))}
    return ExampleOrder(tasks, np.arange(total) // shard_size, seed)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3))
def test_tasks_take_turns_and_every_epoch_is_a_permutation(counts: list[int], seed: int) -> None:
    order = order_of(counts, seed)
    stream = [order.example(position) for position in range(3 * max(counts) * len(counts))]
    for task, count in enumerate(counts):
        own = stream[task :: len(counts)]
        epochs = [own[start : start + count] for start in range(0, len(own) - count + 1, count)]
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        assert len(set(epochs[0])) == count


def test_the_order_depends_on_seed_and_position_alone() -> None:
    order = order_of([30, 20])
    forward = [order.example(position) for position in range(200)]
    fresh = pickle.loads(pickle.dumps(order_of([30, 20])))  # noqa: S301
    assert [fresh.example(position) for position in reversed(range(200))] == forward[::-1]
    assert [order_of([30, 20], seed=1).example(position) for position in range(200)] != forward
    assert forward[0:60:2] != forward[60:120:2]  # the second epoch is shuffled anew


def test_a_permutation_reads_few_shards_at_a_time() -> None:
    order = order_of([2000, 2000], shard_size=50)  # 80 shards
    stream = [order.example(position) // 50 for position in range(4000)]
    assert max(len(set(stream[start : start + 200])) for start in range(0, 3800, 50)) <= 16
    assert len(set(stream[:200])) > 4


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 2), (4, 2), (2, 4), (1, 8)])
def test_a_step_is_the_same_examples_however_it_is_split(
    small_store: SimpleNamespace, configure: Callable[..., Config], world: int, micro: int
) -> None:
    order = example_order(small_store.store, configure())
    for step in range(4):
        whole = order.step(step, 8)
        seen: list[tuple[int, ...]] = []
        for rank in range(world):
            plan = BatchPlan(8, micro, world, rank)
            data = MicroBatches(lambda: small_store.store, order, plan, view="fewshot", top_k=3)
            for a in range(plan.accumulation_steps):
                batch = data[step, a]
                assert batch.step_tokens == sum(len(small_store.records[i].answer_ids) for i in whole)
                assert batch.input_ids_BL.shape[0] == micro
                for ids, length in zip(batch.input_ids_BL, batch.lengths, strict=True):
                    seen.append(tuple(ids[:length].tolist()))
        records = [small_store.records[i] for i in whole]
        assert Counter(seen) == Counter((*r.prompt_ids, *r.answer_ids[:-1]) for r in records)


def test_micro_batches_hold_the_stores_rows_of_their_own_examples(
    small_store: SimpleNamespace, configure: Callable[..., Config]
) -> None:
    order = example_order(small_store.store, configure())
    data = MicroBatches(lambda: small_store.store, order, BatchPlan(8, 8, 1, 0), view="fewshot", top_k=3)
    batch = data[1, 0]
    assert batch.teacher is not None
    t = 0
    flat = batch.input_ids_BL.flatten()
    examples = {(*r.prompt_ids, *r.answer_ids[:-1]): i for i, r in enumerate(small_store.records)}
    for row, length in zip(batch.input_ids_BL, batch.lengths, strict=True):
        i = examples[tuple(row[:length].tolist())]
        record, rows = small_store.records[i], small_store.store.read([i], "fewshot")
        for j, token in enumerate(record.answer_ids):
            assert batch.gold_T[t] == token
            assert batch.top_ids_TK[t].tolist() == rows.token_ids[j, :3].tolist()
            assert batch.teacher.logits_TK[t].tolist() == rows.logits[j, :3].tolist()
            assert batch.teacher.gold_logit_T[t] == float(rows.gold_logit[j])
            assert order.tasks[batch.task_T[t]] == record.task
            before = record.prompt_ids[-1] if j == 0 else record.answer_ids[j - 1]
            assert flat[batch.answer_index_T[t]] == before
            t += 1
    assert t == len(batch.gold_T)


def test_padding_and_predicting_positions_by_hand() -> None:
    batch = collate(
        [AnsweredSequence.answering([10, 11, 12], [13, 14, 1]), AnsweredSequence.answering([20], [21, 1])],
        [0, 1],
        None,
        step_tokens=5,
    )
    assert batch.input_ids_BL.tolist() == [[10, 11, 12, 13, 14], [20, 21, 0, 0, 0]]
    assert batch.lengths == (5, 2)
    assert batch.answer_index_T.tolist() == [2, 3, 4, 5, 6]
    assert batch.gold_T.tolist() == [13, 14, 1, 21, 1]
    assert batch.task_T.tolist() == [0, 0, 0, 1, 1]
    assert batch.real_tokens == 7


def test_length_grouping_leaves_less_padding_than_the_order_itself(
    make_store: Callable[..., SimpleNamespace], configure: Callable[..., Config]
) -> None:
    store = make_store(count=64, top_k=4, max_answer=20)
    order = example_order(store.store, configure())
    length = [len(r.prompt_ids) + len(r.answer_ids) - 1 for r in store.records]
    data = MicroBatches(lambda: store.store, order, BatchPlan(32, 4, 1, 0), view=None, top_k=None)
    batches = [data[divmod(i, 8)] for i in range(16)]
    grouped = sum(batch.input_ids_BL.numel() for batch in batches)
    stream = [length[i] for step in range(2) for i in order.step(step, 32)]
    ungrouped = sum(4 * max(stream[i : i + 4]) for i in range(0, 64, 4))
    real = sum(batch.real_tokens for batch in batches)
    assert real == sum(stream)
    assert grouped - real < 0.4 * (ungrouped - real)


def test_without_a_view_no_teacher_array_is_read(
    small_store: SimpleNamespace, configure: Callable[..., Config]
) -> None:
    class Untouchable:
        info, examples = small_store.store.info, small_store.store.examples

    data = MicroBatches(
        Untouchable, example_order(small_store.store, configure()), BatchPlan(8, 4, 1, 0), view=None, top_k=None
    )
    batch = data[0, 0]
    assert batch.teacher is None
    assert batch.top_ids_TK.shape == (len(batch.gold_T), 0)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("view", ["fewshot", None])
def test_the_loader_gives_the_batches_that_are_read_one_by_one_and_draws_no_random_numbers(
    small_store: SimpleNamespace, configure: Callable[..., Config], threads: int, view: str | None
) -> None:
    order = example_order(small_store.store, configure())
    plan = BatchPlan(8, 4, 1, 0)
    data = MicroBatches(lambda: small_store.store, order, plan, view=view, top_k=4, with_zeroshot=True)
    before = torch.get_rng_state()
    indices = Indices(Split(order, plan, small_store.store.examples.input_length), 2, 9)  # several epochs
    loader = micro_batch_loader(data, indices, num_workers=threads)
    assert list(indices) == [(step, number) for step in range(2, 9) for number in range(2)]
    for index, batch in zip(indices, loader, strict=True):
        expected = data[index]
        owners = [(batch, expected)] if view is None else [(batch, expected), (batch.teacher, expected.teacher)]
        for ours, theirs in owners:
            for field in dataclasses.fields(theirs):
                value, got = getattr(theirs, field.name), getattr(ours, field.name)
                if isinstance(value, torch.Tensor):
                    assert got.dtype == value.dtype
                    assert torch.equal(got, value), field.name
                elif field.name != "teacher":
                    assert got == value, field.name
        assert (batch.teacher is None) == (view is None)
    assert torch.equal(torch.get_rng_state(), before)
