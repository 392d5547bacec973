"""A label store gives back what was put in; folds, parts and views are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from logitbank.errors import IncompleteStoreError, StoreError
from logitbank.preference import Pair, prompt_keys
from logitbank.storage import LabelStore, is_label_store
from tests.storage import label_stores
from tests.storage.label_stores import EXTERNAL, FOLD, FOLDS, PART, ROWS, TRAIN, VALIDATION, build, builder, logits_of


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    odd = Pair("preference/und/train/odd", ("\ud800 half",), ("a" * 700_000,), ("",), (0.25, 0.25, 0.5))
    train = [*TRAIN[:-1], odd]
    with builder(str(tmp_path), train=train):
        pass
    store = LabelStore.open(str(tmp_path))
    for table, pairs in ((store.train, train), (store.validation, VALIDATION), (store.external, EXTERNAL)):
        found = [table.pair(i) for i in range(len(table))]
        for pair, original in zip(found, pairs, strict=True):
            assert (pair.example_id, pair.prompt) == (original.example_id, original.prompt)
            assert (pair.response_a, pair.response_b) == (original.response_a, original.response_b)
            assert pair.target == pytest.approx(original.target, abs=1e-7)
        assert table.prompt_key.tolist() == prompt_keys(pairs).tolist()
        assert table.pair_key.tolist() == [pair.pair_key for pair in pairs]
    assert store.train.fold.tolist() == FOLD.tolist()
    assert store.validation.part.tolist() == PART.tolist()
    assert set(store.external.fold.tolist()) == set(store.validation.fold.tolist()) == {-1}
    assert set(store.external.part.tolist()) == set(store.train.part.tolist()) == {-1}
    assert store.info.counts == {"train": len(TRAIN), "validation": len(VALIDATION), "external": len(EXTERNAL)}
    assert store.train.index_of("preference/und/train/5") == 5
    assert store.train.index_of("preference/und/train/none") is None


def test_folds_lie_beside_the_rows(tmp_path: Path) -> None:
    build(str(tmp_path))
    folds = json.loads((tmp_path / "folds.json").read_text())
    assert folds == {str(k): [p.row_id for p, of in zip(TRAIN, FOLD, strict=True) if of == k] for k in range(FOLDS)}


def test_logits_come_back_and_shards_hold_one_fold_each(tmp_path: Path) -> None:
    with builder(str(tmp_path)) as made:
        label_stores.score(made, "llama", [0, 2])
        assert made.missing_shards("llama") == made.missing_shards("llama", 1)
    store = LabelStore.open(str(tmp_path))
    logits = store.logits("llama")
    scored = FOLD != 1
    assert (logits[scored] == logits_of(range(len(TRAIN)))[scored]).all()
    assert np.isnan(logits[~scored]).all()
    shards = store.scorers("llama")
    assert [(shard.fold, shard.held_out_fold, shard.model) for shard in shards] == [(0, 0, "T0")] * 2 + [
        (2, 2, "T2")
    ] * 2
    assert all(set(FOLD[shard.rows.start : shard.rows.stop].tolist()) == {shard.fold} for shard in shards)
    assert {(shard.trained_rows, shard.selected_rows, shard.selected_prompts) for shard in shards} == {
        (len(TRAIN) - ROWS, 0, 1)
    }
    store.require_view("llama", [0, 2])
    with pytest.raises(IncompleteStoreError, match=r"--view llama: fold 1 of .* --fold 1"):
        store.require_view("llama")
    with pytest.raises(StoreError, match=r"no such view \(it has: llama\)"):
        store.require_view("qwen", [0])


def test_a_view_is_told_from_another_by_its_teachers(tmp_path: Path) -> None:
    for name, weights in (("one", "a"), ("again", "a"), ("other", "b")):
        with builder(str(tmp_path / name)) as made:
            label_stores.score(made, "llama", [0, 1], weights=weights)
    one, again, other = (LabelStore.open(str(tmp_path / name)) for name in ("one", "again", "other"))
    assert one.view_fingerprint("llama", [1, 0]) == again.view_fingerprint("llama", [0, 1])
    assert one.view_fingerprint("llama", [0]) != one.view_fingerprint("llama", [0, 1])
    assert one.view_fingerprint("llama", [0]) != other.view_fingerprint("llama", [0])
    with pytest.raises(IncompleteStoreError):
        one.view_fingerprint("llama")


def test_what_lies_there_is_said(tmp_path: Path) -> None:
    build(str(tmp_path / "labels"), views=())
    assert is_label_store(str(tmp_path / "labels"))
    assert not is_label_store(str(tmp_path / "nothing"))
