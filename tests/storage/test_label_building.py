"""Label stores that are killed, shared by workers or built on S3 end as if nothing had happened."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from logitbank.errors import StoreError
from logitbank.storage import LabelStore, is_label_store, verify_labels
from logitbank.storage.objects import BASE_KEY, LOCK_NAME, open_objects
from logitbank.storage.objects.local import LocalObjects
from logitbank.storage.objects.remote import RemoteObjects
from tests.storage import kills, label_stores
from tests.storage.label_stores import FOLDS, TRAIN, build, builder, logits_of, teacher

MARKS = ("manifest/", "teachers/")


def contents(url: str) -> dict[str, bytes]:
    """Every object of a store but its locks."""
    objects = open_objects(url)
    return {key: objects.get(key) for key in objects.sizes() if not key.startswith(LOCK_NAME)}


def test_a_build_killed_at_every_object_of_a_view_ends_byte_identical(tmp_path: Path) -> None:
    """kill -9 before and inside each: view, what the teacher had seen, logits, marks."""
    whole, path = tmp_path / "whole", tmp_path / "killed"
    keys = kills.written(LocalObjects, lambda: build(str(whole)))
    killed = [key for key in keys if key in (BASE_KEY, "train/zarr.json") or key.startswith(MARKS)]
    for number, key in enumerate(killed):
        moments = [kills.before] if number % 3 else [kills.before, kills.inside_a_file]
        for moment in moments:
            assert kills.killed_at(LocalObjects, lambda: build(str(path)), key, moment)
            if is_label_store(str(path)) and "llama" in (store := LabelStore.open(str(path))).views:
                done = sum(name.startswith("manifest/llama/") for name in killed[:number])
                assert done > 0
                assert len(store.missing_shards("llama")) >= store.plan.shards - done
    build(str(path))
    assert contents(str(path)) == contents(str(whole))
    assert verify_labels(str(path)) == []


def _score_as(url: str, worker: int) -> None:
    with builder(url, worker=worker, workers=2) as made:
        made.add_view("llama", {"max_tokens": 16}, {})
        for fold in range(FOLDS):
            for shard in made.missing_shards("llama", fold):
                if shard % 2 == worker:
                    made.write_shard("llama", shard, logits_of(made.shard_rows(shard)), teacher(fold))


def test_two_workers_share_every_fold(tmp_path: Path) -> None:
    build(str(tmp_path / "whole"))
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_score_as, args=(str(tmp_path / "shared"), worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert contents(str(tmp_path / "shared")) == contents(str(tmp_path / "whole"))


def test_another_builder_is_refused(tmp_path: Path) -> None:
    url = str(tmp_path)
    with builder(url), pytest.raises(StoreError, match="another process is building it"), builder(url):
        pass


def test_on_s3_it_is_the_same(bucket: Callable[[], str], tmp_path: Path) -> None:
    """A killed build included: after the teacher's record, before the first shard's mark."""
    build(str(tmp_path))
    url = bucket()
    for key in ("manifest/llama/fold-0.json", "manifest/llama/0.json"):
        assert kills.killed_at(RemoteObjects, lambda: build(url), key, kills.before)
    build(url)
    assert contents(url) == contents(str(tmp_path))
    assert verify_labels(url) == []
    assert is_label_store(url)
    store = LabelStore.open(url)
    assert store.train.pair(3).prompt == TRAIN[3].prompt
    assert (store.logits("llama") == logits_of(range(len(TRAIN)))).all()


def test_rows_alone_are_a_store(tmp_path: Path) -> None:
    build(str(tmp_path), views=())
    assert LabelStore.open(str(tmp_path)).views == ()
    with builder(str(tmp_path)) as made:
        label_stores.score(made, "llama", [0])
    assert LabelStore.open(str(tmp_path)).views == ("llama",)
