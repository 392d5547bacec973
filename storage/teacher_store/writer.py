"""Building a teacher store: base first, then each view shard by shard, each marked done last.

Nothing that is done is ever written again. A killed build leaves objects that no manifest lists;
the next run writes them anew, with the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from logitbank.errors import StoreError
from logitbank.registry import ENCODINGS
from logitbank.storage.objects import (
    BASE_KEY,
    ObjectEntry,
    ObjectStore,
    done_shards,
    open_objects,
    read_manifest,
    read_object,
    shard_key,
    view_key,
    write_manifest,
)
from logitbank.storage.teacher_store.encodings import Encoding
from logitbank.storage.teacher_store.examples import ExampleRecord, write_examples
from logitbank.storage.teacher_store.layout import (
    FORMAT_VERSION,
    READABLE_VERSIONS,
    ShardPlan,
    array_of,
    create_flat_array,
    create_token_array,
    plan_shards,
    rank_blocks,
)
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.samples import check_samples, encode_samples, sample_arrays
from logitbank.storage.teacher_store.spec import (
    StoreInfo,
    StoreSpec,
    as_json,
    identity_of,
    refuse_difference,
    root_attributes,
    view_attributes,
)
from logitbank.storage.teacher_store.vocabulary import Vocabulary

VIEW_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class StoreBuilder:
    """Write access to one store; made by `open_builder`."""

    def __init__(self, objects: ObjectStore, plan: ShardPlan, info: StoreInfo, vocabulary: Vocabulary) -> None:
        self.objects = objects
        self.plan = plan
        self.info = info
        self._encoding: Encoding = ENCODINGS[info.encoding]
        self._vocabulary = vocabulary
        self._views: dict[str, dict[str, Buffer]] = {}  # metadata of the views that were added

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
        attributes = view_attributes(view, self.info.fingerprint, identity, details)
        contents: dict[str, Buffer] = {}
        group = zarr.create_group(MemoryStore(contents), attributes=attributes)
        rows = self.plan.shards * self.plan.shard_tokens
        for spec in self._encoding.arrays(self.info.top_k) + sample_arrays(self.info.draws, self._encoding):
            create_token_array(group, spec, rows, self.plan.shard_tokens, self.info.chunk_tokens)
        self._views[view] = contents
        if self.objects.exists(view_key(view)):
            entries, _ = read_manifest(self.objects, view_key(view))
            key = f"teachers/{view}/zarr.json"
            existing = json.loads(read_object(self.objects, key, entries[key]))["attributes"]
            refuse_difference(f"view {view}", existing["identity"], attributes["identity"])
            return
        documents = {f"teachers/{view}/{key}": data for key, data in _sorted_bytes(contents).items()}
        with self._writing(f"view {view}"):
            for key, data in documents.items():
                self.objects.put(key, data)
            entries = {key: ObjectEntry.of(data) for key, data in documents.items()}
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
        expected = (self.plan.used_rows(shard), self.info.top_k)
        if rows.token_ids.shape != expected:
            raise StoreError(f"view {view}, shard {shard}: expected rows {expected}, got {rows.token_ids.shape}")
        rows.check(self.info.tokenizer_size, self.info.vocab_size)
        check_samples(rows, self.info.signal, self.info.draws, self.info.tokenizer_size)
        arrays = self._encoding.encode(rows, self._vocabulary)
        arrays |= encode_samples(rows, self._vocabulary, self._encoding)
        metadata = self._views[view]
        contents = dict(metadata)
        group = zarr.open_group(MemoryStore(contents), mode="r+")
        region = slice(shard * self.plan.shard_tokens, (shard + 1) * self.plan.shard_tokens)
        for name, values in arrays.items():
            padded = np.zeros((self.plan.shard_tokens, *values.shape[1:]), dtype=values.dtype)
            padded[: len(values)] = values
            with zarr.config.set({"array.write_empty_chunks": True}):  # zeros are data: write them
                array = array_of(group, name)  # takes the setting over when it is opened
                if padded.ndim == 1:
                    array[region] = padded
                for block in rank_blocks(padded.shape[1]) if padded.ndim == 2 else ():
                    # pcodec takes contiguous memory only
                    array[region, block] = np.ascontiguousarray(padded[:, block])
        written = {key: data for key, data in _sorted_bytes(contents).items() if key not in metadata}
        examples = self.plan.examples_of(shard)
        about = {"view": view, "shard": shard, "examples": [examples.start, examples.stop], **as_json(details or {})}
        entries = {}
        with self._writing(f"view {view}, shard {shard}"):
            for key, data in written.items():
                path = f"teachers/{view}/{key}"
                self.objects.put(path, data)
                entries[path] = ObjectEntry.of(data)
            write_manifest(self.objects, shard_key(view, shard), entries, about)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Report a full disk and its like on one line that says what is kept."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"--store {shlex.quote(self.objects.url)}: cannot write {what}: {error.strerror or error}; "
                "finished shards are kept, run the same command to resume"
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
    """Create a store, or resume the one at `url` if it was created from the same inputs.

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
        StoreError: the store was created from other inputs (says which field, both values), another
            process is writing it, or the location cannot be written.
    """
    objects = open_objects(url)
    plan, chunk_tokens = plan_shards(
        [record.sequence.answer_length for record in examples], spec.shard_tokens, spec.chunk_tokens
    )
    identity = identity_of(spec, plan, chunk_tokens, examples, validation)
    with objects.builder_lock(worker, workers):
        # Alone, whatever is half-written is a dead process's; beside other workers only what is old is.
        objects.remove_partials(older_than=0.0 if worker is None else 3600.0)
        with objects.base_lock():
            if objects.exists(BASE_KEY):
                attributes, numbering = _reopen(objects, identity)
            else:
                numbering = vocabulary()
                if len(numbering.tokens) != spec.tokenizer_size:
                    raise StoreError(f"vocabulary: expected {spec.tokenizer_size} tokens, got {len(numbering.tokens)}")
                attributes = root_attributes(spec, identity, plan, numbering)
                _create(objects, attributes, spec, plan, examples, validation, numbering)
        yield StoreBuilder(objects, plan, StoreInfo.from_attributes(attributes), numbering)


def _create(
    objects: ObjectStore,
    attributes: Mapping[str, Any],
    spec: StoreSpec,
    plan: ShardPlan,
    examples: Sequence[ExampleRecord],
    validation: Sequence[ExampleRecord],
    vocabulary: Vocabulary,
) -> None:
    """Write the base: root, vocabulary and examples, and the manifest that says that they exist."""
    made: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(made), attributes=dict(attributes))
    group = root.create_group("vocabulary")
    for name, values in vocabulary.arrays().items():
        create_flat_array(group, name, values, "pcodec")
    write_examples(root.create_group("examples"), examples, plan.answer_start, spec.tasks, spec.languages)
    lengths = np.array([record.sequence.answer_length for record in validation], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    write_examples(root.create_group("validation"), validation, starts, spec.tasks, spec.languages)
    contents = _sorted_bytes(made)
    try:
        for key, data in contents.items():
            objects.put(key, data)
        write_manifest(objects, BASE_KEY, {key: ObjectEntry.of(data) for key, data in contents.items()}, {})
    except OSError as error:
        raise StoreError(f"--store {shlex.quote(objects.url)}: cannot be written: {error.strerror or error}") from error


def _reopen(objects: ObjectStore, identity: Mapping[str, Any]) -> tuple[dict[str, Any], Vocabulary]:
    """Root attributes and vocabulary of a store that exists."""
    where = f"--store {shlex.quote(objects.url)}"
    entries, _ = read_manifest(objects, BASE_KEY)
    root = json.loads(read_object(objects, "zarr.json", entries["zarr.json"]))["attributes"]
    if (version := root.get("format_version")) != FORMAT_VERSION:
        readable = "which is read but not built on" if version in READABLE_VERSIONS else "which is not known here"
        raise StoreError(
            f"{where}: has format version {version}, {readable}; expected {FORMAT_VERSION}: build into another --store"
        )
    refuse_difference(where, root["identity"], identity)
    documents = {key: read_object(objects, key, entry) for key, entry in entries.items() if "vocabulary/" in key}
    buffer = default_buffer_prototype().buffer
    memory = MemoryStore({key: buffer.from_bytes(data) for key, data in documents.items()})
    group = zarr.open_group(memory, path="vocabulary", mode="r")
    return root, Vocabulary.from_arrays(lambda name: array_of(group, name))


def _sorted_bytes(contents: Mapping[str, Buffer]) -> dict[str, bytes]:
    return {key: buffer.to_bytes() for key, buffer in sorted(contents.items())}
