"""Building a teacher store: base first, then each view shard by shard, each marked done last.

Nothing that is done is ever written again. A killed build leaves objects that no manifest lists;
the next run writes them anew, with the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from logitbank.errors import StoreError
from logitbank.registry import ENCODINGS
from logitbank.storage.objects.lock import base_lock, builder_lock
from logitbank.storage.objects.manifest import (
    BASE_KEY,
    ObjectEntry,
    read_manifest,
    read_object,
    shard_key,
    view_key,
    write_manifest,
)
from logitbank.storage.objects.store import ObjectStore
from logitbank.storage.teacher_store.encoding import Encoding
from logitbank.storage.teacher_store.examples import ExampleRecord, write_examples
from logitbank.storage.teacher_store.layout import (
    FORMAT,
    FORMAT_VERSION,
    ShardPlan,
    create_flat_array,
    create_token_array,
    plan_shards,
    rank_blocks,
)
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.samples import check_samples, encode_samples, sample_arrays
from logitbank.storage.teacher_store.vocabulary import Vocabulary

VIEW_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class StoreSpec:
    """What a store is built from; all of it but `config` must be the same to go on building.

    Attributes:
        model: hub id or path of the student's base model.
        tokenizer_size: ids below this may be stored; rows above are padding of the `lm_head`.
        vocab_size: rows of the teacher's `lm_head`.
        tokenizer_hash: of the tokenizer that made every id.
        tasks: names of the tasks, in the order that example columns index.
        languages: likewise.
        top_k: ranks stored per answer token.
        encoding: key of `storage.encoding.ENCODINGS`.
        shard_tokens: answer-token rows per shard.
        chunk_tokens: answer-token rows per inner chunk.
        teacher: model, revision, weights hash, engine, dtype … of the teacher.
        identity: whatever else changes ids or numbers (prompts, data, token budget …).
        config: the full configuration, for information only.
        signal: one of `storage.samples.SIGNALS`.
        draws: per answer token; 0 for `topk`.
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
    config: Mapping[str, Any] = field(default_factory=dict)
    signal: str = "topk"
    draws: int = 0


class StoreBuilder:
    """Write access to one store; made by `open_builder`."""

    def __init__(
        self,
        objects: ObjectStore,
        plan: ShardPlan,
        encoding: Encoding,
        attributes: Mapping[str, Any],
        vocabulary: Vocabulary,
    ) -> None:
        self.objects = objects
        self.plan = plan
        self.fingerprint: str = attributes["fingerprint"]
        self._attributes = attributes
        self._encoding = encoding
        self._vocabulary = vocabulary
        self._memory: dict[str, MemoryStore] = {}

    def add_view(self, view: str, identity: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        """Declare a view, or check that the one that exists was declared the same way.

        Args:
            view: its name.
            identity: what must not change between runs (demonstrations, prompt hash).
            details: for information (demonstrations dropped …).

        Raises:
            StoreError: a name that cannot be one, or another identity than the view's.
        """
        if not VIEW_NAME.fullmatch(view):
            raise StoreError(f"view: expected lower-case letters, digits and underscores, got {view!r}")
        specs = self._encoding.arrays(self._attributes["top_k"])
        specs += sample_arrays(self._attributes.get("draws", 0), self._encoding.name)
        memory = MemoryStore()
        attributes = {"view": view, "identity": _plain(identity), "details": _plain(details)}
        attributes["fingerprint"] = _hash([self.fingerprint, attributes["identity"]])
        group = zarr.create_group(memory, attributes=attributes)
        rows = self.plan.shards * self.plan.shard_tokens
        for spec in specs:
            create_token_array(group, spec, rows, self.plan.shard_tokens, self._attributes["chunk_tokens"])
        self._memory[view] = memory
        if self.objects.exists(view_key(view)):
            entries, _ = read_manifest(self.objects, view_key(view))
            key = f"teachers/{view}/zarr.json"
            existing = json.loads(read_object(self.objects, key, entries[key]))["attributes"]
            _refuse_difference(f"view {view}", existing["identity"], attributes["identity"])
            return
        documents = {f"teachers/{view}/{key}": data for key, data in _contents(memory).items()}
        entries = {key: ObjectEntry.of(data) for key, data in documents.items()}
        with self._writing(f"view {view}"):
            for key, data in documents.items():
                self.objects.put(key, data)
            write_manifest(self.objects, view_key(view), entries, {"view": view})

    def missing_shards(self, view: str) -> list[int]:
        """Shards of the view that no manifest marks as done."""
        done = done_shards(self.objects, view)
        return [shard for shard in range(self.plan.shards) if shard not in done]

    def write_shard(self, view: str, shard: int, rows: TeacherRows, details: Mapping[str, Any] | None = None) -> None:
        """Encode and write one shard whole, then mark it done.

        Args:
            view: a view declared with `add_view`.
            shard: index below `plan.shards`.
            rows: the used rows, (plan.used_rows(shard), top_k), examples in order.
            details: recorded in the shard's manifest (a token budget that fell, say).

        Raises:
            StoreError: rows that do not fit the shard, or that no teacher can have meant.
        """
        expected = (self.plan.used_rows(shard), self._attributes["top_k"])
        if rows.token_ids.shape != expected:
            raise StoreError(f"view {view}, shard {shard}: expected rows {expected}, got {rows.token_ids.shape}")
        rows.check(self._attributes["tokenizer_size"], self._attributes["vocab_size"])
        signal, draws = self._attributes.get("signal", "topk"), self._attributes.get("draws", 0)
        check_samples(rows, signal, draws, self._attributes["tokenizer_size"])
        memory = self._memory[view]
        group = zarr.open_group(memory, mode="r+")
        metadata = set(_contents(memory))
        region = slice(shard * self.plan.shard_tokens, (shard + 1) * self.plan.shard_tokens)
        arrays = self._encoding.encode(rows, self._vocabulary)
        arrays |= encode_samples(rows, self._vocabulary, self._encoding.name)
        for name, values in arrays.items():
            padded = np.zeros((self.plan.shard_tokens, *values.shape[1:]), dtype=values.dtype)
            padded[: len(values)] = values
            with zarr.config.set({"array.write_empty_chunks": True}):  # zeros are data: write them
                if padded.ndim == 1:
                    group[name][region] = padded  # type: ignore[index]
                for block in rank_blocks(padded.shape[1]) if padded.ndim == 2 else ():
                    # pcodec takes contiguous memory only
                    group[name][region, block] = np.ascontiguousarray(padded[:, block])  # type: ignore[index]
        written = {key: data for key, data in _contents(memory).items() if key not in metadata}
        examples = self.plan.examples_of(shard)
        about = {"view": view, "shard": shard, "examples": [examples.start, examples.stop], **_plain(details or {})}
        entries = {}
        with self._writing(f"view {view}, shard {shard}"):
            for key, data in written.items():
                path = f"teachers/{view}/{key}"
                self.objects.put(path, data)
                entries[path] = ObjectEntry.of(data)
                del memory._store_dict[key]
            write_manifest(self.objects, shard_key(view, shard), entries, about)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """A full disk and its like as one line that says what is kept."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"--store {self.objects.url}: cannot write {what}: {error.strerror or error}; "
                "all finished shards are kept, the same command goes on from there"
            ) from error


@contextlib.contextmanager
def open_builder(
    url: str,
    spec: StoreSpec,
    examples: Sequence[ExampleRecord],
    validation: Sequence[ExampleRecord],
    *,
    vocabulary: Callable[[], Vocabulary],
    worker: int | None = None,
    workers: int | None = None,
) -> Iterator[StoreBuilder]:
    """Create a store, or go on with the one at `url` if it was begun from the same inputs.

    Args:
        url: directory or fsspec URL.
        spec: what the store is built from.
        examples: in store order.
        validation: held-out examples; they get no teacher rows.
        vocabulary: learns the numbering of the tokenizer_size tokens; called only when the store is
            new, then frozen in it.
        worker: index of this worker, where several were started on purpose.
        workers: how many there are.

    Raises:
        StoreError: the store was begun from other inputs (says which field, both values), another
            process is writing it, or the location cannot be written.
    """
    objects = ObjectStore(url)
    plan, chunk_tokens = plan_shards(
        [len(record.answer_ids) for record in examples], spec.shard_tokens, spec.chunk_tokens
    )
    identity = _identity(spec, plan, chunk_tokens, examples, validation)
    with builder_lock(objects, worker, workers):
        # Alone, whatever is half-written is a dead process's; beside other workers only what is old is.
        objects.remove_partials(older_than=0.0 if worker is None else 3600.0)
        with base_lock(objects):
            if objects.exists(BASE_KEY):
                attributes, numbering = _reopen(objects, identity)
            else:
                numbering = vocabulary()
                if len(numbering.tokens) != spec.tokenizer_size:
                    raise StoreError(f"vocabulary: expected {spec.tokenizer_size} tokens, got {len(numbering.tokens)}")
                attributes = _create(objects, spec, identity, plan, examples, validation, numbering)
        yield StoreBuilder(objects, plan, ENCODINGS[spec.encoding], attributes, numbering)


def done_shards(objects: ObjectStore, view: str) -> set[int]:
    """Shards that a manifest marks as done, from one listing."""
    names = (key.rsplit("/", 1)[-1].removesuffix(".json") for key in objects.keys(f"manifest/{view}"))
    return {int(name) for name in names if name.isdigit()}


def _create(
    objects: ObjectStore,
    spec: StoreSpec,
    identity: Mapping[str, Any],
    plan: ShardPlan,
    examples: Sequence[ExampleRecord],
    validation: Sequence[ExampleRecord],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": _hash([identity, vocabulary.hash()]),
        "identity": identity,
        "shards": plan.shards,
        "answer_tokens": int(plan.answer_length.sum()),
        "config": _plain(spec.config),
        **{key: identity[key] for key in _ROOT_FIELDS if key in identity},
    }
    memory = MemoryStore()
    root = zarr.create_group(memory, attributes=attributes)
    group = root.create_group("vocabulary")
    for name, values in vocabulary.arrays().items():
        create_flat_array(group, name, values, "pcodec")
    write_examples(root.create_group("examples"), examples, plan.answer_start, spec.tasks, spec.languages)
    lengths = np.array([len(record.answer_ids) for record in validation], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    write_examples(root.create_group("validation"), validation, starts, spec.tasks, spec.languages)
    contents = _contents(memory)
    try:
        for key, data in contents.items():
            objects.put(key, data)
        write_manifest(objects, BASE_KEY, {key: ObjectEntry.of(data) for key, data in contents.items()}, {})
    except OSError as error:
        raise StoreError(f"--store {objects.url}: cannot be written: {error.strerror or error}") from error
    return attributes


_ROOT_FIELDS = (
    "model",
    "tokenizer_size",
    "vocab_size",
    "tokenizer_hash",
    "tasks",
    "languages",
    "top_k",
    "signal",
    "draws",
    "encoding",
    "shard_tokens",
    "chunk_tokens",
    "teacher",
)


def _reopen(objects: ObjectStore, identity: Mapping[str, Any]) -> tuple[dict[str, Any], Vocabulary]:
    entries, _ = read_manifest(objects, BASE_KEY)
    root = json.loads(read_object(objects, "zarr.json", entries["zarr.json"]))["attributes"]
    if root.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"--store {objects.url}: expected format version {FORMAT_VERSION}, got {root.get('format_version')}; "
            "build into another --store"
        )
    _refuse_difference(f"--store {objects.url}", root["identity"], identity)
    documents = {key: read_object(objects, key, entry) for key, entry in entries.items() if "vocabulary/" in key}
    buffer = default_buffer_prototype().buffer
    memory = MemoryStore({key: buffer.from_bytes(data) for key, data in documents.items()})
    group = zarr.open_group(memory, path="vocabulary", mode="r")
    return root, Vocabulary.from_arrays(lambda name: group[name])


_UNSAID = {"signal": "topk", "draws": 0}  # a store without draws says nothing of them


def _identity(
    spec: StoreSpec,
    plan: ShardPlan,
    chunk_tokens: int,
    examples: Sequence[ExampleRecord],
    validation: Sequence[ExampleRecord],
) -> dict[str, Any]:
    fields = asdict(spec)
    del fields["config"]
    if not spec.draws:
        for key in _UNSAID:
            del fields[key]
    fields.update(
        shard_tokens=plan.shard_tokens,
        chunk_tokens=chunk_tokens,
        examples={"count": len(examples), "hash": _hash_records(examples)},
        validation={"count": len(validation), "hash": _hash_records(validation)},
    )
    return dict(_plain(fields))


def _hash_records(records: Sequence[ExampleRecord]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.example_id}\n{record.task}\n{record.language}\n".encode())
        digest.update(np.asarray([len(record.prompt_ids), len(record.answer_ids)], "<i8").tobytes())
        digest.update(np.asarray(record.prompt_ids, "<i4").tobytes())
        digest.update(np.asarray(record.answer_ids, "<i4").tobytes())
    return digest.hexdigest()


def _refuse_difference(where: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    stored_flat, wanted_flat = _flatten(stored), _flatten(wanted)
    for key in sorted(stored_flat.keys() | wanted_flat.keys(), key=_consequence):
        absent = _UNSAID.get(key, "nothing")
        old, new = stored_flat.get(key, absent), wanted_flat.get(key, absent)
        if old != new:
            raise StoreError(
                f"{where}: begun with {key} = {old}, this run has {new}; "
                "use the same settings to go on, or another --store"
            )


def _consequence(key: str) -> tuple[bool, int, str]:
    """Sorts settings that differ before what differs in their wake, which says less: the signal before its draws."""
    wake = ("count", "chunk_tokens", "shard_tokens", "hash")  # other examples, a store smaller than a shard
    rank = next((number for number, end in enumerate(wake, start=1) if key.endswith(end)), 0)
    return key != "signal", rank, key


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}{key}."))
    return flat


def _plain(value: Any) -> Any:
    """The value as JSON gives it back, so that stored and new identities compare equal."""
    return json.loads(json.dumps(value, sort_keys=True, default=dict))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _contents(memory: MemoryStore) -> dict[str, bytes]:
    return {key: buffer.to_bytes() for key, buffer in sorted(memory._store_dict.items())}
