"""Builds that are killed or run out of space lose nothing and end as if nothing had happened."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logitbank.storage import StoreError, TeacherStore, verify
from logitbank.storage.objects import BASE_KEY
from logitbank.storage.objects.local import LocalObjects
from tests.storage import kills, stores

EXAMPLES = stores.records(36, longest=4)
LAYOUT: dict[str, Any] = {"views": ("zeroshot",), "shard_tokens": 8, "chunk_tokens": 8, "top_k": 70}
FEW = stores.records(6, longest=4)
SMALL: dict[str, Any] = {"views": ("zeroshot",), "shard_tokens": 8, "chunk_tokens": 8, "top_k": 17}


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a store but its lock files."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def is_mark(key: str) -> bool:
    """Whether a key is the manifest of a shard."""
    return key.startswith("manifest/zeroshot/") and not key.endswith("view.json")


def test_a_build_killed_at_every_object_ends_byte_identical(tmp_path: Path) -> None:
    """kill -9 before each object of views and shards, and inside one of each kind; a new process resumes each time."""
    whole, path = tmp_path / "whole", tmp_path / "killed"
    keys = kills.written(LocalObjects, lambda: stores.build(str(whole), FEW, **SMALL))
    expected = contents(whole)
    assert sorted(keys) == sorted(expected)
    shards = TeacherStore.open(str(whole)).info.shards
    assert shards == 3
    kinds: set[str] = set()
    for number, key in enumerate(keys):
        if number % 8 and number < keys.index(BASE_KEY):
            continue  # of the base's many objects some will do
        finished = {name for name in keys[:number] if name.startswith("manifest/")}
        kind = "mark" if is_mark(key) else f"{key.split('/')[0]} {key.split('/')[-1]}"
        moments = [kills.before] if kind in kinds else [kills.before, kills.inside_a_file]
        kinds.add(kind)
        for moment in moments:
            assert kills.killed_at(LocalObjects, lambda: stores.build(str(path), FEW, **SMALL), key, moment)
            left = contents(path)
            assert finished == {name for name in left if name in expected and name.startswith("manifest/")}
            assert any(name.endswith(".partial") for name in left) == (moment is kills.inside_a_file)
            if "manifest/zeroshot/view.json" in finished:
                missing = TeacherStore.open(str(path)).missing_shards("zeroshot")
                assert len(missing) == shards - sum(map(is_mark, finished))
    stores.build(str(path), FEW, **SMALL)
    assert contents(path) == expected
    assert verify(str(path)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for less than one store."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    whole = tmp_path / "whole"
    stores.build(str(whole), EXAMPLES, **LAYOUT)
    ballast = small_disk / "ballast"
    store = small_disk / "store"
    stored_bytes = sum(len(data) // 4096 * 4096 + 4096 for data in contents(whole).values())
    subprocess.run(["mount", "-o", f"remount,size={stored_bytes + (1 << 20)}", str(small_disk)], check=True)
    ballast.write_bytes(bytes(1 << 20))
    with ballast.open("ab") as file:
        file.write(bytes(stored_bytes // 3 // 4096 * 4096))
    says = r"cannot write .*No space left on device.*run the same command to resume"
    with pytest.raises(StoreError, match=says) as refusal:
        stores.build(str(store), EXAMPLES, **LAYOUT)
    assert "\n" not in str(refusal.value)
    missing = TeacherStore.open(str(store)).missing_shards("zeroshot")
    assert 0 < len(missing) < TeacherStore.open(str(whole)).info.shards
    done = {key: data for key, data in contents(store).items() if key.startswith("manifest/")}
    ballast.unlink()
    stores.build(str(store), EXAMPLES, **LAYOUT)
    assert done.items() <= contents(store).items()
    assert contents(store) == contents(whole)


def test_a_disk_that_fills_up_at_the_mark_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = str(tmp_path / "store")
    put = LocalObjects.put

    def full(self: LocalObjects, key: str, data: bytes) -> None:
        if key == "manifest/zeroshot/0.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "put", full)
        with pytest.raises(StoreError, match=r"cannot write view zeroshot, shard 0: No space left on device"):
            stores.build(store, FEW, **SMALL)
    stores.build(store, FEW, **SMALL)
    stores.build(str(tmp_path / "whole"), FEW, **SMALL)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
