"""Reading a teacher store. Every byte is checked against the manifest before it becomes a number.

Whole objects are fetched and their size and CRC-32C verified first, so a flipped bit, a truncated or a
missing object is an error, never data, whichever codecs are in use. Zarr decodes the metadata and the
examples; teacher arrays are decoded here, a shard at a time, and kept as they are stored: only the rows
that are asked for become ids and logits.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from logitbank.errors import CorruptStoreError, IncompleteStoreError, StoreError, counted
from logitbank.registry import ENCODINGS
from logitbank.storage.groups import open_root, view_names
from logitbank.storage.objects import (
    covers,
    done_shards,
    open_objects,
    read_manifest,
    read_objects,
    shard_key,
    view_key,
)
from logitbank.storage.teacher_store.chunks import decode_object
from logitbank.storage.teacher_store.encodings import Encoding
from logitbank.storage.teacher_store.examples import ExampleTable
from logitbank.storage.teacher_store.layout import FORMAT, RANK_BLOCK, READABLE_VERSIONS, ShardPlan, rank_blocks
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.samples import decode_samples, sample_arrays
from logitbank.storage.teacher_store.spec import StoreInfo
from logitbank.storage.teacher_store.views import Tokens, ViewLayout
from logitbank.storage.teacher_store.vocabulary import Vocabulary

_Objects = dict[str, dict[str, bytes]]  # of a shard: array, key, bytes
_Shard = dict[str, NDArray[Any]]  # each array as (objects, rows, columns of an object), values as stored


class TeacherStore:
    """Read access to one store.

    Attributes:
        url: where it is.
        info: what it is.
        examples: the training examples.
        validation: held-out examples, without teacher rows.
        views: names of the views it has, finished or not.
        plan: which rows belong to which example.
        vocabulary: the numbering of tokens that was frozen in it.
        encoding: how its rows are stored.
    """

    def __init__(self, url: str, cache_bytes: int) -> None:
        self.url = url
        self.objects = open_objects(url)
        self._source, attributes = open_root(url, self.objects, FORMAT, READABLE_VERSIONS)
        self.info = StoreInfo.from_attributes(attributes)
        self._zarr = MemoryStore(self._source, read_only=True)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        version = attributes["format_version"]
        names = (self.info.tasks, self.info.languages)
        self.examples = ExampleTable(lambda name: self._array(f"examples/{name}"), version, names=names)
        self.validation = ExampleTable(lambda name: self._array(f"validation/{name}"), version, names=names)
        self.vocabulary = Vocabulary.from_arrays(lambda name: self._array(f"vocabulary/{name}"))
        self.plan = _plan(self.examples, self.info.shard_tokens, self.info.shards)
        self.views = view_names(self.objects)
        self._layout = ViewLayout(self.plan, self.info.chunk_tokens, self.info.tokens, self.vocabulary)
        if self.info.encoding not in ENCODINGS:
            raise StoreError(
                f"--store {shlex.quote(url)}: its encoding is {self.info.encoding}, "
                f"but the registered ones are {', '.join(ENCODINGS)}; register it before opening the store"
            )
        self.encoding: Encoding = ENCODINGS[self.info.encoding]
        self._specs = self.encoding.arrays(self.info.top_k) + sample_arrays(self.info.draws, self.encoding)
        self._view_attributes: dict[str, dict[str, Any]] = {}
        self._own: dict[str, tuple[ViewLayout, ExampleTable]] = {}
        self._cache_bytes = cache_bytes
        self._shards = _Cache(cache_bytes)

    def __reduce__(self) -> tuple[type[TeacherStore], tuple[str, int]]:
        """Another process opens the store for itself, with nothing in its cache."""
        return TeacherStore, (self.url, self._cache_bytes)

    @classmethod
    def open(cls, url: str, *, cache_bytes: int = 1 << 30) -> TeacherStore:
        """Open a store for reading.

        Args:
            url: directory or fsspec URL.
            cache_bytes: how much decompressed teacher signal to keep in memory.

        Raises:
            StoreError: there is none, or one of another format version.
            CorruptStoreError: a damaged root, manifest or example table.
        """
        return cls(url, cache_bytes)

    def view_attributes(self, view: str) -> Mapping[str, Any]:
        """`identity`, `details` and `fingerprint` of a view; StoreError if there is none."""
        if view not in self.views:
            have = ", ".join(self.views) or "none yet"
            raise StoreError(
                f"--view {shlex.quote(view)}: the store {shlex.quote(self.url)} has no such view (it has: {have})"
            )
        if view not in self._view_attributes:
            entries, _ = read_manifest(self.objects, view_key(view))
            # The metadata of its arrays is checked as well, though nothing reads it here.
            keys = [key for key in entries if key.endswith("zarr.json")]
            documents = dict(zip(keys, read_objects(self.objects, keys, entries, f"view {view}"), strict=True))
            self._view_attributes[view] = json.loads(documents[f"teachers/{view}/zarr.json"])["attributes"]
        return self._view_attributes[view]

    def table(self, view: str) -> ExampleTable:
        """The examples that a view's rows belong to: the store's, or the view's own."""
        return self.examples if not self.has_own_sequences(view) else self._own_of(view)[1]

    def plan_of(self, view: str) -> ShardPlan:
        """Which rows of a view belong to which example of `table(view)`."""
        return self._layout_of(view).plan

    def tokens_of(self, view: str) -> Tokens:
        """What the token ids of a view stand for."""
        return self._layout_of(view).tokens

    def has_own_sequences(self, view: str) -> bool:
        """Whether the view's teacher saw other answers, or other token ids, than the store's examples hold."""
        return self.view_attributes(view).get("sequences") == "own"

    def bounded(self, view: str) -> tuple[str, ...]:
        """Which of `BOUNDABLE` a view only knows as bounds, because another program wrote it; none in views that we
        build.
        """
        return tuple(self.view_attributes(view).get("identity", {}).get("bounded", ()))

    def require_examples(self, view: str) -> None:
        """Raise `StoreError` if a view's rows do not belong to the store's examples, which students learn from."""
        if self.has_own_sequences(view):
            shared = ", ".join(name for name in self.views if not self.has_own_sequences(name)) or "none"
            raise StoreError(
                f"--view {view}: its teacher read different sequences from those that students train on; expected a "
                f"view of the store's own examples ({shared})"
            )

    def _layout_of(self, view: str) -> ViewLayout:
        return self._layout if not self.has_own_sequences(view) else self._own_of(view)[0]

    def _own_of(self, view: str) -> tuple[ViewLayout, ExampleTable]:
        """Layout and examples of a view with sequences of its own, read when they are asked for first."""
        if view not in self._own:
            attributes, place = self.view_attributes(view), f"teachers/{view}"
            self._source.add_manifest(view_key(view))
            table = ExampleTable(lambda name: self._array(f"{place}/examples/{name}"), of=self.examples)
            tokens, vocabulary = self.info.tokens, self.vocabulary
            if "teacher" in attributes:
                tokens = Tokens(**{field.name: attributes[field.name] for field in fields(Tokens)})
                vocabulary = Vocabulary.from_arrays(lambda name: self._array(f"{place}/vocabulary/{name}"))
            plan = _plan(table, attributes["shard_tokens"], attributes["shards"])
            self._own[view] = ViewLayout(plan, attributes["chunk_tokens"], tokens, vocabulary), table
        return self._own[view]

    def missing_shards(self, view: str) -> list[int]:
        """Shards of a view that are not written yet."""
        shards = self.plan_of(view).shards
        done = done_shards(self.objects, view)
        return [shard for shard in range(shards) if shard not in done]

    def require_view(self, view: str) -> None:
        """Raise `StoreError` if the view is absent, `IncompleteStoreError` if half-built."""
        missing = self.missing_shards(view)
        if missing:
            raise IncompleteStoreError(
                f"--view {view}: {len(missing)} of {counted(self.plan_of(view).shards, 'shard')} of "
                f"{shlex.quote(self.url)} not written yet; run the same build-teacher-cache command to resume"
            )

    def read(self, examples: Sequence[int] | NDArray[Any], view: str, top_k: int | None = None) -> TeacherRows:
        """Teacher rows of the given examples, end to end in the given order.

        Args:
            examples: positions in `table(view)`, at least one.
            view: which view.
            top_k: how many ranks, up to the stored K (the default). With fewer, draws are left out.

        Raises:
            StoreError: no such view, more ranks than stored, or no examples asked for.
            CorruptStoreError: bytes that are missing or damaged.
        """
        top_k = self.check_top_k(top_k)
        if len(examples) == 0:
            raise StoreError("examples: expected at least one, got none")
        rows: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        total, plan = 0, self.plan_of(view)
        for example in examples:
            shard, row = divmod(int(plan.answer_start[example]), plan.shard_tokens)
            length = int(plan.answer_length[example])
            rows[shard].append((row, total, length))
            total += length
        return self._decode(view, rows, total, top_k)

    def read_shard(self, view: str, shard: int, top_k: int | None = None) -> TeacherRows:
        """All used rows of one shard."""
        used = self.plan_of(view).used_rows(shard)
        return self._decode(view, {shard: [(0, 0, used)]}, used, self.check_top_k(top_k))

    def check_top_k(self, top_k: int | None) -> int:
        """The number of ranks requested, None for all; StoreError for more than the store holds."""
        top_k = self.info.top_k if top_k is None else top_k
        if not 1 <= top_k <= self.info.top_k:
            raise StoreError(f"top_k: expected 1 to {self.info.top_k} (what the store holds), got {top_k}")
        return top_k

    def _decode(
        self, view: str, rows: Mapping[int, Sequence[tuple[int, int, int]]], total: int, top_k: int
    ) -> TeacherRows:
        """Some rows of some shards: per shard, runs of (its first row, where that goes, how many rows)."""
        gathered: dict[str, NDArray[Any]] = {}
        for shard, runs in sorted(rows.items()):  # one after the other: no more than one beyond the cache is alive
            for name, values in self._load(view, shard, top_k).items():
                objects, _, columns = values.shape
                if name not in gathered:
                    gathered[name] = np.empty((total, objects, columns), dtype=values.dtype)
                wide = gathered[name]
                for row, start, length in runs:
                    wide[start : start + length] = values[:, row : row + length].transpose(1, 0, 2)
        return self._rows(view, {name: values.reshape(total, -1) for name, values in gathered.items()}, top_k)

    def decode_shard(
        self, view: str, shard: int, top_k: int, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], TeacherRows]]:
        """Some rows of one shard, a chunk of `chunk_tokens` at a time; threads may call it at once.

        Args:
            view: which view.
            shard: which shard.
            top_k: how many ranks, up to the stored K. With fewer, draws are left out.
            wanted: (used rows,) which rows.

        Yields:
            The rows of a chunk, ascending, and their teacher rows; chunks without any are skipped.

        Raises:
            StoreError, CorruptStoreError: as `read`.
        """
        layout = self._layout_of(view)
        with self._naming_the_repair(view, shard):
            fetched = self._fetch(view, shard, top_k)
        for start in range(0, len(wanted), layout.chunk_tokens):
            rows = np.flatnonzero(wanted[start : start + layout.chunk_tokens])
            if not len(rows):
                continue
            chunk = range(start, start + int(rows[-1]) + 1)
            with self._naming_the_repair(view, shard):
                stored = self._stored(fetched, chunk, shard, layout)
            chosen = slice(None) if len(rows) == len(chunk) else rows
            wide = {name: _side_by_side(values[:, chosen]) for name, values in stored.items()}
            yield start + rows, self._rows(view, wide, top_k)

    def _rows(self, view: str, wide: dict[str, NDArray[Any]], top_k: int) -> TeacherRows:
        """The rows that arrays as wide as their objects hold."""
        arrays = {}
        for spec in self._specs:
            columns = spec.columns_for(top_k, self.info.top_k)
            arrays[spec.name] = wide.pop(spec.name)[:, 0 if columns is None else slice(columns)]
        vocabulary = self._layout_of(view).vocabulary
        decoded = self.encoding.decode(arrays, top_k, vocabulary)
        # Draws complete all of the K ranks: to fewer they say nothing.
        complete = self.info.draws and top_k == self.info.top_k
        return decode_samples(decoded, arrays, vocabulary, self.encoding) if complete else decoded

    def _load(self, view: str, shard: int, top_k: int) -> _Shard:
        """The used rows of a shard, with the columns that the first `top_k` ranks need."""
        key = (view, shard, -(-top_k // RANK_BLOCK))
        if (cached := self._shards.get(key)) is not None:
            return cached
        layout = self._layout_of(view)
        with self._naming_the_repair(view, shard):
            fetched = self._fetch(view, shard, top_k)
            arrays = self._stored(fetched, range(layout.plan.used_rows(shard)), shard, layout)
        self._shards.put(key, arrays)
        return arrays

    def _fetch(self, view: str, shard: int, top_k: int) -> _Objects:
        """The objects of a shard that the first `top_k` ranks need, checked."""
        try:
            entries, details = read_manifest(self.objects, shard_key(view, shard))
        except FileNotFoundError:
            self.require_view(view)
            raise
        keys: dict[str, list[str]] = {}
        for spec in self._specs:
            base = f"teachers/{view}/{spec.name}/c/{shard}"
            columns = spec.columns_for(top_k, self.info.top_k)
            keys[spec.name] = [base] if columns is None else [f"{base}/{i}" for i in range(len(rank_blocks(columns)))]
        wanted = [name for names in keys.values() for name in names]
        objects = dict(zip(wanted, read_objects(self.objects, wanted, entries, covers(details)), strict=True))
        return {name: {key: objects[key] for key in own} for name, own in keys.items()}

    def _stored(self, fetched: _Objects, rows: range, shard: int, layout: ViewLayout) -> _Shard:
        """Rows as they are stored; the first is the first of a chunk."""
        arrays: _Shard = {}
        for spec in self._specs:
            # Zarr fills a narrower last block up, so all objects of an array have as many columns.
            shape = (len(fetched[spec.name]), len(rows), min(RANK_BLOCK, spec.width or 1))
            arrays[spec.name] = np.empty(shape, dtype=spec.dtype)
            for (key, data), out in zip(fetched[spec.name].items(), arrays[spec.name], strict=True):
                _decode_object(key, data, out, rows.start, shard, layout)
        return arrays

    @contextlib.contextmanager
    def _naming_the_repair(self, view: str, shard: int) -> Iterator[None]:
        try:
            yield
        except CorruptStoreError as error:
            raise CorruptStoreError(
                f"{error}; delete {shard_key(view, shard)} and run the same build-teacher-cache command to write "
                "this shard again"
            ) from error

    def _array(self, path: str) -> zarr.Array[Any]:
        if path not in self._arrays:
            opened = zarr.open_array(self._zarr, path=path, mode="r")
            self._arrays[path] = opened
        return self._arrays[path]


def _plan(table: ExampleTable, shard_tokens: int, shards: int) -> ShardPlan:
    first = np.searchsorted(table.answer_start // shard_tokens, np.arange(shards + 1))
    return ShardPlan(shard_tokens, table.answer_start, table.answer_length, first.astype(np.int64))


def _decode_object(key: str, data: bytes, out: NDArray[Any], first: int, shard: int, layout: ViewLayout) -> None:
    try:
        decode_object(data, out, first=first, shard_tokens=layout.plan.shard_tokens, chunk_tokens=layout.chunk_tokens)
    except Exception as error:  # a codec that chokes on bytes whose checksum matched
        raise CorruptStoreError(f"{key}, shard {shard}: cannot be decoded: {error}") from error


def _side_by_side(values: NDArray[Any]) -> NDArray[Any]:
    """(rows, objects × columns) of (objects, rows, columns)."""
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


class _Cache:
    """Least recently used shards, up to a number of bytes (one shard is always kept)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._shards: OrderedDict[tuple[str, int, int], _Shard] = OrderedDict()

    def get(self, key: tuple[str, int, int]) -> _Shard | None:
        if key in self._shards:
            self._shards.move_to_end(key)
        return self._shards.get(key)

    def put(self, key: tuple[str, int, int], arrays: _Shard) -> None:
        self._shards[key] = arrays
        self._bytes += _bytes(arrays)
        while self._bytes > self._limit and len(self._shards) > 1:
            _, dropped = self._shards.popitem(last=False)
            self._bytes -= _bytes(dropped)


def _bytes(arrays: _Shard) -> int:
    return sum(values.nbytes for values in arrays.values())
