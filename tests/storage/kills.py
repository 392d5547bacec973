"""Builds in a process of their own that die by `kill -9` at one exact moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from logitbank.storage.objects.local import LocalObjects
from logitbank.storage.objects.remote import RemoteObjects

Backend = type[LocalObjects] | type[RemoteObjects]
Put = Callable[[], None]


def written(backend: Backend, build: Callable[[], None]) -> list[str]:
    """Keys of all objects in the order in which a build that is let be writes them."""
    keys: list[str] = []
    put = backend.put

    def watched(self: Any, key: str, data: bytes) -> None:
        keys.append(key)
        put(self, key, data)

    backend.put = watched  # type: ignore[method-assign]
    try:
        build()
    finally:
        backend.put = put  # type: ignore[method-assign]
    return keys


def before(put: Put) -> None:
    """Die before the object is written."""
    die()


def inside_a_file(put: Put) -> None:
    """Die when half of the object's file is written."""
    fdopen = os.fdopen
    os.fdopen = lambda *arguments: _DyingFile(fdopen(*arguments))  # type: ignore[assignment,return-value]
    put()


def inside_a_request(put: Put) -> None:
    """Die a few milliseconds after the request is begun."""
    threading.Timer(0.003, die).start()
    put()


def die() -> NoReturn:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived")


class _DyingFile:
    """A file whose first `write` ends the process half-way."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _DyingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        die()


def killed_at(backend: Backend, build: Callable[[], None], key: str, moment: Callable[[Put], None]) -> bool:
    """Build in another process that dies at a moment of writing an object; whether it came to that."""

    def work() -> None:
        put = backend.put

        def watched(self: Any, name: str, data: bytes) -> None:
            if name == key:
                moment(lambda: put(self, name, data))
            else:
                put(self, name, data)

        backend.put = watched  # type: ignore[method-assign]
        build()

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
