"""Builds that are killed or run out of space lose nothing and end as if nothing had happened."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.storage import StoreError, TeacherStore
from logitbank.storage.objects import store as objects
from logitbank.storage.teacher_store.verify import verify
from tests.storage import stores

PHASES = (
    "before the first object of a shard",
    "between objects",
    "inside an object",
    "between objects and mark",
    "after the mark",
)
KILLS = 50
EXAMPLES = stores.records(36, longest=4)
LAYOUT: dict[str, Any] = {"views": ("zeroshot",), "shard_tokens": 8, "chunk_tokens": 8, "top_k": 70}


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a store but its lock files."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


class _StoppingFile:
    """A file whose first `write` stops half-way."""

    def __init__(self, file: Any, stop: Any) -> None:
        self._file, self._stop = file, stop

    def __enter__(self) -> _StoppingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._stop()
        self._file.write(data[len(data) // 2 :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def build_until(url: str, phase: str, shards_before: int, skip: int, reached: Any) -> None:
    """Subprocess: build, and wait for the kill once `phase` of the (`shards_before` + 1)-th shard is reached.

    Args:
        skip: how many of the phase's moments in that shard to let pass (there are several between objects).
    """
    state = {"shards": 0, "objects": 0, "skip": skip}

    def stop() -> None:
        reached.send(True)
        time.sleep(60)

    def at(name: str) -> bool:
        if name != phase or state["shards"] != shards_before:
            return False
        state["skip"] -= 1
        return state["skip"] < 0

    put, fdopen = objects.ObjectStore.put, os.fdopen

    def watched_put(self: objects.ObjectStore, key: str, data: bytes) -> None:
        is_mark = key.startswith("manifest/zeroshot/") and not key.endswith("view.json")
        is_object = key.startswith("teachers/zeroshot/") and "/c/" in key
        if is_object and at(PHASES[0] if state["objects"] == 0 else PHASES[1]):
            stop()
        if is_mark and at(PHASES[3]):
            stop()
        if is_object and at(PHASES[2]):
            objects.os.fdopen = lambda *arguments: _StoppingFile(fdopen(*arguments), stop)
        put(self, key, data)
        state["objects"] += is_object
        if is_mark:
            if at(PHASES[4]):
                stop()
            state["shards"] += 1
            state["objects"] = 0

    objects.ObjectStore.put = watched_put  # type: ignore[method-assign]
    stores.build(url, EXAMPLES, **LAYOUT)


def test_killed_builds_end_byte_identical(tmp_path: Path) -> None:
    """At least KILLS times kill -9, counted per phase; each time a new process goes on."""
    whole = tmp_path / "whole"
    stores.build(str(whole), EXAMPLES, **LAYOUT)
    expected = contents(whole)
    total = TeacherStore.open(str(whole)).info.shards
    rng = np.random.default_rng(5)
    fork = multiprocessing.get_context("fork")
    kills: Counter[str] = Counter()
    attempt = 0
    while sum(kills.values()) < KILLS or min(kills[phase] for phase in PHASES) < 3:
        path = tmp_path / f"killed{attempt}"
        attempt += 1
        finished = False
        while not finished:
            phase = PHASES[int(rng.integers(len(PHASES)))]
            receiver, sender = fork.Pipe(duplex=False)
            arguments = (str(path), phase, int(rng.integers(2)), int(rng.integers(5)), sender)
            process = fork.Process(target=build_until, args=arguments, daemon=True)
            process.start()
            sender.close()
            try:
                receiver.recv()
            except EOFError:  # it came to the end before that moment
                process.join()
                assert process.exitcode == 0
                finished = True
                continue
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            kills[phase] += 1
            done = {key for key in contents(path) if key.startswith("manifest/zeroshot/") and "view" not in key}
            missing = TeacherStore.open(str(path)).missing_shards("zeroshot")
            assert len(missing) == total - len(done)
        assert contents(path) == expected
    assert verify(str(path)) == []
    print(f"{sum(kills.values())} kills: " + ", ".join(f"{kills[phase]} {phase}" for phase in PHASES))
    assert all(kills[phase] for phase in PHASES)


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
    with pytest.raises(StoreError, match=r"cannot write .*No space left on device.*goes on from there") as refusal:
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
    put = objects.ObjectStore.put

    def full(self: objects.ObjectStore, key: str, data: bytes) -> None:
        if key == "manifest/zeroshot/0.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(objects.ObjectStore, "put", full)
        with pytest.raises(StoreError, match=r"cannot write view zeroshot, shard 0: No space left on device"):
            stores.build(store, EXAMPLES, **LAYOUT)
    stores.build(store, EXAMPLES, **LAYOUT)
    stores.build(str(tmp_path / "whole"), EXAMPLES, **LAYOUT)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
