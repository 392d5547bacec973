"""What every kind of place has to do with objects and locks: one suite, a directory and an object store."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from logitbank.errors import CorruptStoreError, StoreError
from logitbank.storage.objects import ObjectEntry, ObjectStore, open_objects, read_objects
from logitbank.storage.objects.remote import RemoteObjects


@pytest.fixture(params=["directory", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty place of each kind."""
    url = str(tmp_path / "store") if request.param == "directory" else request.getfixturevalue("bucket")()
    return open_objects(url)


def again(objects: ObjectStore) -> ObjectStore:
    """The same place, as another process would open it."""
    return open_objects(objects.url + "/")


def test_what_was_put_is_there_for_everybody(objects: ObjectStore) -> None:
    assert objects.sizes() == {}
    assert not objects.exists("a/b")
    for key, data in (("a/c", b"123"), ("a/b", b""), ("z", bytes(range(256)))):
        objects.put(key, data)
    objects.put("z", b"new")
    other = again(objects)
    assert other.url == objects.url
    assert list(other.sizes().items()) == [("a/b", 0), ("a/c", 3), ("z", 3)]
    assert other.sizes("a") == {"a/b": 0, "a/c": 3}
    assert other.get("z") == b"new"
    assert other.exists("a/b")
    assert not other.exists("a")
    assert list(other.get_each(["z", "none", "a/c"])) == [b"new", None, b"123"]
    objects.require_writable()


def test_what_is_not_there_is_said(objects: ObjectStore) -> None:
    objects.put("a", b"1")
    with pytest.raises(FileNotFoundError):
        objects.get("b")
    objects.delete("b")
    objects.delete("a")
    assert not again(objects).exists("a")
    assert objects.sizes("nothing/below") == {}


def test_several_objects_are_checked_each(objects: ObjectStore) -> None:
    contents = {f"k{i}": bytes(range(i, 2 * i)) for i in range(20)}
    for key, data in contents.items():
        objects.put(key, data)
    entries = {key: ObjectEntry.of(data) for key, data in contents.items()}
    keys = sorted(contents, reverse=True)
    assert read_objects(objects, keys, entries, "all") == [contents[key] for key in keys]
    objects.put("k7", contents["k7"][:-1] + bytes([contents["k7"][-1] ^ 1]))
    with pytest.raises(CorruptStoreError, match=r"k7 \(all\): damaged"):
        read_objects(objects, keys, entries, "all")
    objects.delete("k7")
    with pytest.raises(CorruptStoreError, match=r"k7 \(all\): missing"):
        read_objects(objects, keys, entries, "all")
    with pytest.raises(CorruptStoreError, match=r"other \(all\): not listed in any manifest"):
        read_objects(objects, ["k1", "other"], entries, "all")


def test_an_undeclared_builder_is_alone_and_workers_share(objects: ObjectStore) -> None:
    refused = pytest.raises(StoreError, match="another process is building it")
    with objects.builder_lock():
        for claim in ((), (0, 2)):
            with refused, again(objects).builder_lock(*claim):
                pass
    with objects.builder_lock(0, 2), again(objects).builder_lock(1, 2), objects.base_lock():
        for claim in ((), (0, 2), (1, 2)):
            with refused, again(objects).builder_lock(*claim):
                pass
        objects.put("by a worker", b"1")
    with again(objects).builder_lock():
        assert objects.exists("by a worker")


def test_an_error_inside_a_lock_is_passed_on_and_releases_it(objects: ObjectStore) -> None:
    error = BlockingIOError(errno.EAGAIN, "of the work, not of the lock")
    for lock in (objects.builder_lock, objects.base_lock):
        with pytest.raises(BlockingIOError, match="of the work"), lock():
            raise error
        with lock():
            pass


def test_unfinished_writes_are_no_objects_and_are_removed_by_age(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    objects.put("a/b", b"1")
    (tmp_path / "a/b.x1.partial").write_bytes(b"half")
    assert objects.sizes() == {"a/b": 1}
    assert objects.remove_partials(older_than=3600) == 0
    assert objects.remove_partials() == 1
    assert not list(tmp_path.rglob("*.partial"))
    assert objects.get("a/b") == b"1"


@pytest.mark.parametrize("make", [lambda path: str(path), lambda path: f"file://{path}"])
def test_a_directory_is_a_path_or_a_file_url(tmp_path: Path, make: Callable[[Path], str]) -> None:
    open_objects(make(tmp_path / "a b")).put("k", b"1")
    assert (tmp_path / "a b/k").read_bytes() == b"1"
    (tmp_path / "a b/k").write_bytes(b"")
    with pytest.raises(StoreError, match=r"--store '.*a b/k': expected a directory, but '.*a b/k' is a file"):
        open_objects(make(tmp_path / "a b/k"))


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bytes]] = []

    def sync(descriptor: int) -> None:
        assert not (tmp_path / "a").exists()
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append((path.name, path.read_bytes()))

    monkeypatch.setattr("os.fsync", sync)
    open_objects(str(tmp_path)).put("a", b"all of it")
    ((name, data),) = synced
    assert name.endswith(".partial")
    assert data == b"all of it" == (tmp_path / "a").read_bytes()


def test_requests_over_a_network_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    def get(self: RemoteObjects, key: str) -> bytes:
        both.wait(timeout=30)  # breaks where the second request waits for the first
        return key.encode()

    monkeypatch.setattr(RemoteObjects, "get", get)
    assert list(open_objects("memory://store").get_each(["a", "b"])) == [b"a", b"b"]
