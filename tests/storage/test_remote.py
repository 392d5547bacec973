"""A store behind a real S3 server: killed builds, competing builders, damage."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.storage import StoreError, TeacherStore, open_builder, verify
from logitbank.storage.objects import LOCK_NAME, ObjectStore, lease, open_objects
from logitbank.storage.objects.remote import RemoteObjects
from tests.storage import kills, stores
from tests.storage.test_crash import EXAMPLES

LAYOUT: dict[str, Any] = {"views": ("zeroshot",), "shard_tokens": 40, "chunk_tokens": 8, "top_k": 17}


def contents(url: str) -> dict[str, bytes]:
    """Every object of a store but its leases."""
    objects = open_objects(url)
    return {key: objects.get(key) for key in objects.sizes() if not key.startswith(LOCK_NAME)}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted build leaves in a directory."""
    url = str(tmp_path_factory.mktemp("local") / "store")
    stores.build(url, EXAMPLES, **LAYOUT)
    return contents(url)


@pytest.fixture(scope="module")
def url(bucket: Callable[[], str]) -> str:
    """A finished store on S3."""
    made = bucket()
    stores.build(made, EXAMPLES, **LAYOUT)
    return made


def test_objects_and_rows_are_those_of_a_directory(url: str, local: dict[str, bytes], tmp_path: Path) -> None:
    assert contents(url) == local
    assert verify(url) == []
    assert not open_objects(url).sizes(LOCK_NAME)
    stores.build(str(tmp_path / "store"), EXAMPLES, **LAYOUT)
    rows, same = (TeacherStore.open(u).read([3, 0], "zeroshot", 17) for u in (url, str(tmp_path / "store")))
    np.testing.assert_array_equal(rows.token_ids, same.token_ids)
    np.testing.assert_array_equal(rows.logits, same.logits)


def test_killed_builds_end_byte_identical(bucket: Callable[[], str], local: dict[str, bytes]) -> None:
    """kill -9 between any two requests, and in the middle of one; the next process resumes at once."""
    url = bucket()
    moments = {
        "teachers/zeroshot/block_gaps/c/0/0": kills.before,  # the first object of a shard
        "teachers/zeroshot/gaps/c/0/0": kills.before,  # between objects
        "teachers/zeroshot/tails/c/0/0": kills.inside_a_request,
        "manifest/zeroshot/0.json": kills.before,  # between objects and mark
        "teachers/zeroshot/block_gaps/c/1/0": kills.before,  # after the mark
    }
    marked = []
    for key, moment in moments.items():
        assert kills.killed_at(RemoteObjects, lambda: stores.build(url, EXAMPLES, **LAYOUT), key, moment)
        marked.append(open_objects(url).exists("manifest/zeroshot/0.json"))
    assert marked == [False, False, False, False, True]
    stores.build(url, EXAMPLES, **LAYOUT)
    assert contents(url) == local
    assert verify(url) == []


def builder(url: str, worker: int | None) -> Any:
    """A builder of the finished store at `url`, undeclared or one of two workers."""
    return open_builder(
        url,
        stores.spec(**{key: value for key, value in LAYOUT.items() if key != "views"}),
        EXAMPLES,
        [],
        vocabulary=lambda: pytest.fail("the store has its vocabulary"),
        worker=worker,
        workers=None if worker is None else 2,
    )


@pytest.fixture
def holder(url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Another process that holds the right to write; the parameter is its worker index."""
    with stores.held_elsewhere(lambda: builder(url, request.param)) as process:
        yield process


@pytest.mark.parametrize("holder", [None], indirect=True)
@pytest.mark.parametrize("worker", [None, 1])
def test_an_undeclared_builder_excludes_all_others_until_it_dies(holder: Any, url: str, worker: int | None) -> None:
    with pytest.raises(StoreError, match=r"another process is building it \(process \d+ on "):
        builder(url, worker).__enter__()
    holder.kill()
    holder.join()
    with builder(url, worker) as writing:
        writing.add_view("zeroshot", {"demonstrations": 8}, {})
        assert writing.missing_shards("zeroshot") == []


@pytest.mark.parametrize("holder", [0], indirect=True)
def test_declared_builders_share_but_not_the_same_part(holder: Any, url: str) -> None:
    for worker in (None, 0):
        with pytest.raises(StoreError, match="another process is building it"):
            builder(url, worker).__enter__()
    with builder(url, 1) as writing:
        writing.add_view("zeroshot", {"demonstrations": 8}, {})
        assert writing.missing_shards("zeroshot") == []


def strangers_lease(url: str, number: int = 1) -> tuple[ObjectStore, str]:
    """A lease of a process on another machine."""
    objects, key = open_objects(url), f"{LOCK_NAME}/undeclared/stranger"
    objects.put(key, json.dumps({"host": "elsewhere", "machine": "other", "pid": 1, "number": number}).encode())
    return objects, key


@pytest.mark.parametrize("number", [0, 1])
def test_a_lease_from_another_machine_runs_out(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(lease, "LIFETIME", 1.0)
    objects, key = strangers_lease(url, number)
    started = time.monotonic()
    with caplog.at_level("INFO"), builder(url, None):
        assert time.monotonic() - started > 1
        assert not objects.exists(key)
    assert "waiting for process 1 on elsewhere" in caplog.text


def test_a_lease_that_another_machine_renews_is_respected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LIFETIME", 30.0)  # renewals may come late
    objects, key = strangers_lease(url)

    def renew() -> None:
        while not stop.wait(0.3):
            objects.put(
                key, json.dumps({"host": "elsewhere", "machine": "other", "number": 1, "n": time.time()}).encode()
            )

    stop = threading.Event()
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(StoreError, match="another process is building it"):
            builder(url, None).__enter__()
    finally:
        stop.set()
        thread.join()
        objects.delete(key)
    assert not objects.sizes(LOCK_NAME)


def test_whoever_could_not_renew_writes_no_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept finds its lease run out, even if it reaches the store again."""
    with builder(url, None) as writing:
        now = lease._now
        monkeypatch.setattr(lease, "_now", lambda: now() + lease.LIFETIME)
        with pytest.raises(StoreError, match="another process may be building it now"):
            writing.objects.put("teachers/never", b"")
        monkeypatch.setattr(lease, "_now", now)
    assert not open_objects(url).exists("teachers/never")


def test_of_several_that_start_at_once_exactly_one_builds(url: str) -> None:
    """The lock is a claim and a look around: claims that cross must not all give way, nor two go on."""
    fork = multiprocessing.get_context("fork")
    line, outcomes, leave = fork.Barrier(3), fork.Queue(), fork.Event()

    def contend() -> None:
        line.wait()
        try:
            with builder(url, None):
                outcomes.put(True)
                leave.wait(300)
        except StoreError:
            outcomes.put(False)

    processes = [fork.Process(target=contend, daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    won = [outcomes.get(timeout=300) for _ in processes]
    leave.set()
    for process in processes:
        process.join()
    assert sorted(won) == [False, False, True]


def test_workers_that_start_together_make_one_base(
    bucket: Callable[[], str], local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first scores a pilot; the others wait for the table that it makes."""
    url, opened = bucket(), stores.open_builder
    fork = multiprocessing.get_context("fork")
    line, pilots = fork.Barrier(2), fork.Queue()

    def work(worker: int) -> None:
        def open_as_worker(*arguments: Any, vocabulary: Callable[[], Any], **more: Any) -> Any:
            def pilot() -> Any:
                pilots.put(worker)
                time.sleep(0.5)
                return vocabulary()

            return opened(*arguments, vocabulary=pilot, worker=worker, workers=2, **more)

        monkeypatch.setattr(stores, "open_builder", open_as_worker)
        line.wait()
        stores.build(url, EXAMPLES, **LAYOUT)

    processes = [fork.Process(target=work, args=(worker,), daemon=True) for worker in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert pilots.get(timeout=5) in (0, 1)
    assert pilots.empty()
    assert contents(url) == local


def test_damage_is_found(url: str) -> None:
    """A reader meets one damaged object at a time, `verify` all of them at once."""
    objects = open_objects(url)
    damaged = {
        "zarr.json": lambda data: bytes([data[0] ^ 1]) + data[1:],
        "examples/answer_ids/c/0": lambda data: data[:-1],
        "teachers/zeroshot/codes/c/1/0": None,
        "manifest/zeroshot/0.json": lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    }
    pristine = {key: objects.get(key) for key in damaged}

    def spoil(key: str) -> None:
        change = damaged[key]
        if change is None:
            objects.delete(key)
        else:
            objects.put(key, change(pristine[key]))

    def read_everything() -> None:
        store = TeacherStore.open(url)
        store.require_view("zeroshot")
        store.examples.answer_ids(0)
        store.read(range(len(store.examples)), "zeroshot")

    try:
        for key in damaged:
            spoil(key)
            with pytest.raises(StoreError, match=key):
                read_everything()
            objects.put(key, pristine[key])
        for key in damaged:
            spoil(key)
        found = verify(url)
        assert all(any(key in problem for problem in found) for key in damaged)
    finally:
        for key in damaged:
            objects.put(key, pristine[key])
    read_everything()


def test_what_cannot_be_reached_is_one_line(bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no teacher store there"):
        TeacherStore.open(bucket())
    with pytest.raises(StoreError, match=r"cannot be written: .*bucket does not exist"):
        stores.build("s3://no-such-bucket/store", EXAMPLES, **LAYOUT)
    with pytest.raises(StoreError, match=r"--store nosuch://x"):
        TeacherStore.open("nosuch://x")
