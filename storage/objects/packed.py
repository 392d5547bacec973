"""Stores packed for sharing: many objects end to end in few files, and an index that says where each is.

A place that only serves files (a web server, a repository of the hub) can neither list nor append. There a
store is `logitbank.json`, the index, and `packs/*.pack`, the objects of one manifest after the other. Objects
and manifests are those of the store, byte for byte, and are checked as usual.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Protocol

from logitbank.errors import CorruptStoreError, StoreError

INDEX_NAME = "logitbank.json"
FORMAT, VERSION = "logitbank-packed", 1
REQUESTS = 8  # at the same time
RUN_BYTES = 1 << 26  # at most this much in one request, unless one object is larger
WINDOW_BYTES = 1 << 28  # at most this much in memory at a time


class FileSource(Protocol):
    """Reads parts of files below one place."""

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file from `start` to `stop`, or all of them; fewer where the file is shorter.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: the place cannot be reached, or refuses.
        """


class FolderSource:
    """A `FileSource` in a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `FileSource.read`."""
        with (self._folder / name).open("rb") as file:
            file.seek(start or 0)
            return file.read(-1 if stop is None else stop - (start or 0))


@dataclass(frozen=True)
class Extent:
    """Where an object is: its pack, and its first byte and the one after its last there."""

    pack: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.stop - self.start


class PackedObjects:
    """An `ObjectStore` that is read from packs and never written.

    Raises:
        StoreError: no index there, one of another version, or nothing to reach.
        CorruptStoreError: a damaged index.
    """

    def __init__(self, url: str, source: FileSource) -> None:
        self.url = url.rstrip("/")
        self._source = source
        try:
            data = source.read(INDEX_NAME)
        except FileNotFoundError:
            raise StoreError(
                f"--store {shlex.quote(url)}: no {INDEX_NAME} there; expected a store packed by logitbank push "
                "(--output DIR packs into a directory for any web server)"
            ) from None
        self._extents = read_index(self.url, data)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        if key not in self._extents:
            raise FileNotFoundError(key)
        (data,) = self._fetch([key]).values()
        if data is None:
            raise CorruptStoreError(f"{self._extents[key].pack}: missing, although {INDEX_NAME} lists it")
        return data

    def get_each(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """See `ObjectStore.get_each`; neighbours come in one request."""
        wanted = list(keys)
        with ThreadPoolExecutor(max_workers=REQUESTS) as pool:
            for window in _windows(wanted, self._extents, WINDOW_BYTES):
                runs = _runs([key for key in dict.fromkeys(window) if key in self._extents], self._extents)
                found: dict[str, bytes | None] = {}
                for part in pool.map(self._fetch, runs):
                    found |= part
                for key in window:
                    yield found.get(key)

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        return key in self._extents

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `ObjectStore.sizes`."""
        below = prefix.rstrip("/") + "/" if prefix else ""
        return {key: extent.size for key, extent in sorted(self._extents.items()) if key.startswith(below)}

    def put(self, key: str, data: bytes) -> None:
        """Refused, as is all that writes."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Refused."""
        self._refuse()

    def remove_partials(self, older_than: float = 0.0) -> int:
        """Refused."""
        self._refuse()

    def require_writable(self) -> None:
        """Refused."""
        self._refuse()

    def builder_lock(
        self, worker: int | None = None, workers: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Refused."""
        self._refuse()

    def base_lock(self) -> contextlib.AbstractContextManager[None]:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError(
            f"--store {shlex.quote(self.url)}: a packed store is read-only; unpack it into a directory with "
            "logitbank pull, and build there"
        )

    def _fetch(self, run: Sequence[str]) -> dict[str, bytes | None]:
        """Objects that are end to end in one pack, from one request; None if the pack is missing."""
        extents = [self._extents[key] for key in run]
        start = extents[0].start
        try:
            data = self._source.read(extents[0].pack, start, extents[-1].stop)
        except FileNotFoundError:
            return dict.fromkeys(run)
        return {key: data[e.start - start : e.stop - start] for key, e in zip(run, extents, strict=True)}


def write_index(packs: Mapping[str, Sequence[tuple[str, int]]]) -> bytes:
    """The index of packs, each given as keys and bytes of its objects in their order."""
    content = {"format": FORMAT, "version": VERSION, "packs": {name: list(packs[name]) for name in sorted(packs)}}
    return json.dumps({"content": content, "sha256": _seal(content)}, sort_keys=True, separators=(",", ":")).encode()


def read_index(url: str, data: bytes) -> dict[str, Extent]:
    """Where each object is, by key.

    Raises:
        StoreError: an index of another version.
        CorruptStoreError: it is not what was written.
    """
    place = f"--store {shlex.quote(url)}: {INDEX_NAME}"
    extents: dict[str, Extent] = {}
    try:
        sealed = json.loads(data)
        content = sealed["content"]
        intact = sealed["sha256"] == _seal(content) and content["format"] == FORMAT
        version = content["version"]
        if intact and version == VERSION:
            for pack, objects in content["packs"].items():
                stop = 0
                for key, size in objects:
                    start, stop = stop, stop + size
                    extents[key] = Extent(pack, start, stop)
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise CorruptStoreError(f"{place}: damaged, or not an index of logitbank; push the store again")
    if version != VERSION:
        raise StoreError(f"{place}: expected version {VERSION}, got {version}; install a newer logitbank")
    return extents


def _windows(keys: Sequence[str], extents: Mapping[str, Extent], most: int) -> Iterator[list[str]]:
    """Consecutive keys whose objects fit into memory together."""
    window: list[str] = []
    held = 0
    for key in keys:
        size = extents[key].size if key in extents else 0
        if window and held + size > most:
            yield window
            window, held = [], 0
        window.append(key)
        held += size
    if window:
        yield window


def _runs(keys: Iterable[str], extents: Mapping[str, Extent]) -> list[list[str]]:
    """The keys by their position, those that are end to end together."""
    ordered = sorted(keys, key=lambda key: (extents[key].pack, extents[key].start, extents[key].stop))
    runs: list[list[str]] = [ordered[:1]] if ordered else []
    for before, key in pairwise(ordered):
        left, right, first = extents[before], extents[key], extents[runs[-1][0]]
        if left.pack == right.pack and left.stop == right.start and right.stop - first.start <= RUN_BYTES:
            runs[-1].append(key)
        else:
            runs.append([key])
    return runs


def _seal(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
