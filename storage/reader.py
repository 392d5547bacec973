"""Reading a teacher store. Every byte is checked against the manifest before it becomes a number.

Zarr decodes from a mapping that fetches whole objects and verifies size and CRC-32C first, so a
flipped bit, a truncated or a missing object is an error, never data, whichever codecs are in use.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from storage.encoding import ENCODINGS
from storage.errors import CorruptStoreError, IncompleteStoreError, StoreError
from storage.examples import ExampleTable
from storage.layout import FORMAT, FORMAT_VERSION, RANK_BLOCK, ShardPlan
from storage.manifest import BASE_KEY, ObjectEntry, read_manifest, read_object, shard_key, view_key
from storage.objects import ObjectStore
from storage.rows import TeacherRows, concatenate
from storage.writer import done_shards


@dataclass(frozen=True)
class StoreInfo:
    """What a store says of itself; see `StoreSpec` for the fields it was begun with.

    Attributes:
        fingerprint: SHA-256 over everything that decides its content.
        answer_tokens: answer tokens of all examples, per view.
        shards: shards per view.
    """

    model: str
    tokenizer_size: int
    vocab_size: int
    tokenizer_hash: str
    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    top_k: int
    encoding: str
    shard_tokens: int
    chunk_tokens: int
    teacher: Mapping[str, Any]
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    fingerprint: str
    answer_tokens: int
    shards: int


class TeacherStore:
    """Read access to one store.

    Attributes:
        url: where it lies.
        info: what it is.
        examples: the training examples.
        validation: held-out examples, without teacher rows.
        views: names of the views it has, finished or not.
        plan: which rows belong to which example.
    """

    def __init__(self, url: str, cache_bytes: int) -> None:
        self.url = url
        self.objects = ObjectStore(url)
        self._source = _VerifiedObjects(self.objects)
        try:
            self._source.add_manifest(BASE_KEY)
        except FileNotFoundError:
            raise StoreError(
                f"--store {url}: no teacher store there (no {BASE_KEY}); build one with build-teacher-cache"
            ) from None
        for key in [key for key in self._source if key.endswith("zarr.json")]:
            self._source[key]  # metadata that no array needs is checked as well
        attributes = json.loads(self._source["zarr.json"].to_bytes())["attributes"]
        if attributes.get("format") != FORMAT or attributes.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"--store {url}: expected {FORMAT} version {FORMAT_VERSION}, "
                f"got {attributes.get('format')} version {attributes.get('format_version')}"
            )
        names = set(StoreInfo.__dataclass_fields__)
        values = {key: value for key, value in attributes.items() if key in names}
        self.info = StoreInfo(**{**values, "tasks": tuple(values["tasks"]), "languages": tuple(values["languages"])})
        self._zarr = MemoryStore(self._source, read_only=True)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.examples = ExampleTable(lambda name: self._array(f"examples/{name}"))
        self.validation = ExampleTable(lambda name: self._array(f"validation/{name}"))
        self._token_of_code: NDArray[np.int32] = np.asarray(self._array("vocabulary")[:])
        shard_of = self.examples.answer_start // self.info.shard_tokens
        first = np.searchsorted(shard_of, np.arange(self.info.shards + 1))
        self.plan = ShardPlan(
            self.info.shard_tokens,
            self.examples.answer_start,
            self.examples.answer_length,
            first.astype(np.int64),
        )
        found = {key.split("/")[1] for key in self.objects.keys("manifest") if key.endswith("/view.json")}
        self.views = tuple(sorted(found))
        self._encoding = ENCODINGS[self.info.encoding]()
        self._view_attributes: dict[str, dict[str, Any]] = {}
        self._decoded = _Cache(cache_bytes)

    @classmethod
    def open(cls, url: str, *, cache_bytes: int = 1 << 30) -> TeacherStore:
        """Open a store for reading.

        Args:
            url: directory or fsspec URL.
            cache_bytes: how much decoded teacher signal to keep in memory.

        Raises:
            StoreError: there is none, or one of another format version.
            CorruptStoreError: a damaged root, manifest or example table.
        """
        return cls(url, cache_bytes)

    def view_attributes(self, view: str) -> Mapping[str, Any]:
        """`identity`, `details` and `fingerprint` of a view; StoreError where there is none."""
        if view not in self.views:
            have = ", ".join(self.views) or "none yet"
            raise StoreError(f"--view {view}: the store at {self.url} has no such view (it has: {have})")
        if view not in self._view_attributes:
            self._source.add_manifest(view_key(view))
            document = self._source[f"teachers/{view}/zarr.json"].to_bytes()
            self._view_attributes[view] = json.loads(document)["attributes"]
        return self._view_attributes[view]

    def missing_shards(self, view: str) -> list[int]:
        """Shards of a view that are still to be written."""
        self.view_attributes(view)
        done = done_shards(self.objects, view)
        return [shard for shard in range(self.info.shards) if shard not in done]

    def require_view(self, view: str) -> None:
        """Raise `StoreError` where the view is absent, `IncompleteStoreError` where half-built."""
        missing = self.missing_shards(view)
        if missing:
            raise IncompleteStoreError(
                f"--view {view}: {len(missing)} of {self.info.shards} shards of {self.url} are still to be "
                "written; run build-teacher-cache again, it does only those"
            )

    def read(self, examples: Sequence[int] | NDArray[Any], view: str, top_k: int | None = None) -> TeacherRows:
        """Teacher rows of the given examples, end to end in the given order.

        Args:
            examples: positions in `self.examples`, at least one.
            view: which view.
            top_k: how many ranks, up to the stored K (the default).

        Raises:
            StoreError: no such view, more ranks than stored, or no examples asked for.
            CorruptStoreError: bytes that are missing or damaged.
        """
        top_k = self.info.top_k if top_k is None else top_k
        if not 1 <= top_k <= self.info.top_k:
            raise StoreError(f"top_k: expected 1 to {self.info.top_k} (what the store holds), got {top_k}")
        if len(examples) == 0:
            raise StoreError("examples: expected at least one, got none")
        parts = []
        for example in examples:
            start = int(self.plan.answer_start[example])
            shard = start // self.plan.shard_tokens
            rows = self.read_shard(view, shard, top_k)
            row = start - shard * self.plan.shard_tokens
            parts.append(rows.take(np.arange(row, row + int(self.plan.answer_length[example]))))
        return concatenate(parts)

    def read_shard(self, view: str, shard: int, top_k: int | None = None) -> TeacherRows:
        """All used rows of one shard; the latest are kept decoded."""
        top_k = self.info.top_k if top_k is None else top_k
        key = (view, shard, top_k)
        if (cached := self._decoded.get(key)) is not None:
            return cached
        self.view_attributes(view)
        try:
            self._source.add_manifest(shard_key(view, shard))
        except FileNotFoundError:
            self.require_view(view)
            raise
        first = shard * self.plan.shard_tokens
        region = slice(first, first + self.plan.used_rows(shard))
        columns = min(-(-top_k // RANK_BLOCK) * RANK_BLOCK, self.info.top_k)
        arrays = {}
        for spec in self._encoding.arrays(self.info.top_k):
            array = self._array(f"teachers/{view}/{spec.name}")
            ranks = slice(0, columns) if spec.width == self.info.top_k else slice(None)
            try:
                arrays[spec.name] = np.asarray(array[region] if spec.width is None else array[region, ranks])
            except CorruptStoreError:
                raise
            except Exception as error:  # a codec that chokes on bytes whose checksum matched
                raise CorruptStoreError(
                    f"teachers/{view}/{spec.name}, shard {shard}: cannot be decoded: {error}"
                ) from error
        rows = self._encoding.decode(arrays, top_k, self._token_of_code)
        self._decoded.put(key, rows)
        return rows

    def _array(self, path: str) -> zarr.Array[Any]:
        if path not in self._arrays:
            opened = zarr.open_array(self._zarr, path=path, mode="r")
            self._arrays[path] = opened
        return self._arrays[path]


class _VerifiedObjects(MutableMapping[str, Buffer]):
    """Zarr's view of the store: whole objects that the manifests list, verified when fetched."""

    def __init__(self, objects: ObjectStore, keep_bytes: int = 1 << 26) -> None:
        self._objects = objects
        self._entries: dict[str, tuple[ObjectEntry, str]] = {}
        self._manifests: set[str] = set()
        self._recent: OrderedDict[str, Buffer] = OrderedDict()
        self._recent_bytes = 0
        self._keep_bytes = keep_bytes

    def add_manifest(self, key: str) -> None:
        """Make the objects of one manifest readable."""
        if key in self._manifests:
            return
        entries, details = read_manifest(self._objects, key)
        what = ""
        if "shard" in details:
            first, stop = details["examples"]
            what = f"view {details['view']}, shard {details['shard']}, examples {first} to {stop - 1}"
        self._entries.update({name: (entry, what) for name, entry in entries.items()})
        self._manifests.add(key)

    def __getitem__(self, key: str) -> Buffer:
        if key in self._recent:
            return self._recent[key]
        if key not in self._entries and "/c/" in key:  # never let Zarr fill a gap with zeros
            raise CorruptStoreError(f"{key}: a chunk that no manifest lists")
        entry, what = self._entries[key]
        data = read_object(self._objects, key, entry, what)
        buffer: Buffer = default_buffer_prototype().buffer.from_bytes(data)
        self._recent[key] = buffer
        self._recent_bytes += len(data)
        while self._recent_bytes > self._keep_bytes and len(self._recent) > 1:
            _, dropped = self._recent.popitem(last=False)
            self._recent_bytes -= len(dropped)
        return buffer

    def __setitem__(self, key: str, value: Buffer) -> None:
        raise TypeError("a store is read-only here")

    def __delitem__(self, key: str) -> None:
        raise TypeError("a store is read-only here")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class _Cache:
    """Least recently used decoded shards, up to a number of bytes (one shard is always kept)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._rows: OrderedDict[tuple[str, int, int], TeacherRows] = OrderedDict()

    def get(self, key: tuple[str, int, int]) -> TeacherRows | None:
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def put(self, key: tuple[str, int, int], rows: TeacherRows) -> None:
        self._rows[key] = rows
        self._bytes += _bytes(rows)
        while self._bytes > self._limit and len(self._rows) > 1:
            _, dropped = self._rows.popitem(last=False)
            self._bytes -= _bytes(dropped)


def _bytes(rows: TeacherRows) -> int:
    return len(rows) * (rows.token_ids.shape[1] * 8 + 20)
