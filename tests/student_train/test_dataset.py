"""A store as a PyTorch dataset: items, batches, and the order of train-student."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import logitbank
from logitbank import DistillationCollator, TeacherDataset
from logitbank.configs import Config
from logitbank.errors import ConfigError, StoreError
from logitbank.student_train.order import example_order

PAD = 0


def loaded(data: TeacherDataset, **options: Any) -> list[Any]:
    return list(DataLoader(data, collate_fn=DistillationCollator(pad_id=PAD), **options))


def test_an_item_is_an_example_with_its_rows(small_store: SimpleNamespace) -> None:
    data = TeacherDataset(small_store.url, view="fewshot", top_k=5)
    assert len(data) == len(small_store.records)
    item, record = data[3], small_store.records[3]
    assert (item.example_id, item.sequence) == (record.example_id, record.sequence)
    expected = small_store.store.read([3], "fewshot", 5)
    np.testing.assert_array_equal(item.rows.token_ids, expected.token_ids)
    np.testing.assert_array_equal(item.rows.logits, expected.logits)
    with pytest.raises(IndexError, match="expected 0 to 23"):
        _ = data[24]


def test_a_batch_says_where_its_rows_are_predicted(small_store: SimpleNamespace) -> None:
    batch = loaded(TeacherDataset(small_store.store, view="zeroshot"), batch_size=4)[1]
    records = small_store.records[4:8]
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape == batch.teacher.shape
    for row, record in enumerate(records):
        length = len(record.input_ids)
        assert batch.attention_mask[row].sum() == length
        assert batch.input_ids[row, :length].tolist() == record.input_ids.tolist()
        assert (batch.input_ids[row, length:] == PAD).all()
        at = (batch.labels[row] != -100).nonzero()[:, 0]
        assert at.tolist() == record.answer_positions.tolist()
        assert batch.labels[row, at].tolist() == record.answer_ids.tolist()
    # index_T + 1 is where the gold token stands, for nothing is predicted from a row's last token
    assert torch.equal(batch.input_ids.flatten()[batch.teacher.index_T + 1], batch.teacher.gold_T)
    rows = small_store.store.read(range(4, 8), "zeroshot")
    np.testing.assert_array_equal(batch.teacher.token_ids_TC, rows.token_ids)
    np.testing.assert_array_equal(batch.teacher.logits.entropy_T, rows.entropy)
    assert set(batch.inputs) == {"input_ids", "attention_mask"}


def test_the_order_is_that_of_train_student(small_store: SimpleNamespace, configure: Callable[..., Config]) -> None:
    order = example_order(small_store.store, configure("seed=5"))
    sampler = TeacherDataset(small_store.store, view=None, shuffle_seed=5).sampler()
    taken = list(sampler)
    sampler.set_epoch(1)
    assert [*taken, *sampler] == [order.example(position) for position in range(48)]
    assert len(set(taken)) == len(sampler) == 24
    assert list(TeacherDataset(small_store.store, view=None).sampler(30)) == [*range(24), *range(6)]


def test_some_tasks_and_no_view(small_store: SimpleNamespace) -> None:
    data = TeacherDataset(small_store.store, view=None, tasks=["pos"], shuffle_seed=0)
    assert sorted(data.sampler()) == list(range(12))
    assert {data[i].example_id.split("/")[0] for i in range(12)} == {"pos"}
    (batch,) = loaded(data, batch_size=12)
    assert batch.teacher is None


def test_workers_and_pickles_open_the_store_for_themselves(small_store: SimpleNamespace) -> None:
    data = TeacherDataset(small_store.store, view="fewshot", shuffle_seed=1)
    here = loaded(data, batch_size=8, sampler=data.sampler())
    there = loaded(data, batch_size=8, sampler=data.sampler(), num_workers=1)
    copied = loaded(pickle.loads(pickle.dumps(data)), batch_size=8, sampler=data.sampler())  # noqa: S301
    for batches in (there, copied):
        for batch, expected in zip(batches, here, strict=True):
            assert torch.equal(batch.input_ids, expected.input_ids)
            assert torch.equal(batch.teacher.logits.logits_TK, expected.teacher.logits.logits_TK)


def test_what_the_store_lacks_is_refused(small_store: SimpleNamespace) -> None:
    with pytest.raises(StoreError, match="no such view"):
        TeacherDataset(small_store.store, view="other")
    with pytest.raises(StoreError, match="expected 1 to 16"):
        TeacherDataset(small_store.store, view="fewshot", top_k=17)
    with pytest.raises(ConfigError, match=r"no examples of qa \(it has nli, pos\)"):
        TeacherDataset(small_store.store, view="fewshot", tasks=["qa"])
    with pytest.raises(ConfigError, match="length: expected at least 1 item, got 0"):
        TeacherDataset(small_store.store, view=None).sampler(0)
    with pytest.raises(AttributeError, match="a batch has no 'nonsense', only input_ids"):
        _ = loaded(TeacherDataset(small_store.store, view=None), batch_size=2)[0].nonsense


def test_a_revision_is_of_the_hub(small_store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="expected a store on the hub"):
        logitbank.open_store(small_store.url, revision="v1")
    asked: list[str] = []
    monkeypatch.setattr(logitbank.TeacherStore, "open", lambda url, cache_bytes: asked.append(url))
    logitbank.open_store("hf://datasets/org/name", revision="v1")
    logitbank.open_store("hf://datasets/org/name@v1/store", revision="v1")
    assert asked == ["hf://datasets/org/name@v1", "hf://datasets/org/name@v1/store"]
    with pytest.raises(StoreError, match="names a different revision than v2"):
        logitbank.open_store("hf://datasets/org/name@v1", revision="v2")
