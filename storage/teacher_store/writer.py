"""Building a teacher store: base first, then each view shard by shard, each marked done last.

Nothing that is done is ever written again. A killed build leaves objects that no manifest lists;
the next run writes them anew, with the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from logitbank.errors import StoreError
from logitbank.registry import ENCODINGS
from logitbank.storage.groups import (
    array_of,
    as_json,
    create_flat_array,
    put_objects,
    read_root,
    refuse_difference,
    require_kind,
    require_view_name,
)
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
)
from logitbank.storage.teacher_store.encodings import Encoding
from logitbank.storage.teacher_store.examples import ExampleRecord, write_examples, write_own
from logitbank.storage.teacher_store.layout import (
    FORMAT,
    FORMAT_VERSION,
    READABLE_VERSIONS,
    ShardPlan,
    create_token_array,
    plan_shards,
    rank_blocks,
)
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.samples import check_samples, encode_samples, sample_arrays
from logitbank.storage.teacher_store.spec import (
    ABSENT,
    StoreInfo,
    StoreSpec,
    identity_of,
    root_attributes,
    view_attributes,
    view_identity,
)
from logitbank.storage.teacher_store.views import OtherTeacher, OwnSequences, Saw, ViewLayout
from logitbank.storage.teacher_store.vocabulary import Vocabulary


class _View(NamedTuple):
    """A view that was added: how it lies, and the metadata documents of its group and arrays."""

    layout: ViewLayout
    metadata: dict[str, Buffer]


class StoreBuilder:
    """Write access to one store; made by `open_builder`."""

    def __init__(
        self,
        objects: ObjectStore,
        spec: StoreSpec,
        examples: Sequence[ExampleRecord],
        info: StoreInfo,
        layout: ViewLayout,
    ) -> None:
        self.objects = objects
        self.plan = layout.plan
        self.info = info
        self._spec = spec
        self._examples = examples
        self._encoding: Encoding = ENCODINGS[info.encoding]
        self._layout = layout
        self._views: dict[str, _View] = {}

    def add_view(
        self,
        view: str,
        identity: Mapping[str, Any],
        details: Mapping[str, Any],
        *,
        sequences: Saw = "student",
        own: OwnSequences | None = None,
    ) -> None:
        """Declare a view, or check that the one that exists was declared the same way.

        Args:
            view: its name.
            identity: what must not change between runs: demonstrations, a hash of what the teacher saw …
            details: for information (demonstrations dropped …).
            sequences: whether the teacher saw the examples as the student does, or their answers behind other
                `context`.
            own: where it saw other answers than the examples', or other token ids: what it saw. The view then has
                examples and shards of its own.

        Raises:
            StoreError: a name that cannot be one, another identity than the view's, or sequences of examples that
                the store does not have.
        """
        require_view_name(view)
        # Two workers would learn two numberings.
        with self.objects.base_lock() if own is not None else contextlib.nullcontext():
            self._views[view] = self._add_view(view, identity, details, sequences, own)

    def _add_view(
        self,
        view: str,
        identity: Mapping[str, Any],
        details: Mapping[str, Any],
        sequences: Saw,
        own: OwnSequences | None,
    ) -> _View:
        existing = None
        if self.objects.exists(view_key(view)):
            existing, _ = read_manifest(self.objects, view_key(view))
        layout = self._layout if own is None else self._own_layout(own)
        identity = view_identity(identity, own, layout)
        if existing is not None:
            key = f"teachers/{view}/zarr.json"
            stored = json.loads(read_object(self.objects, key, existing[key]))["attributes"]
            refuse_difference(f"view {view}", stored["identity"], identity)
        if own is not None and own.teacher is not None:
            layout = replace(layout, vocabulary=self._own_vocabulary(view, own.teacher, existing))
        contents: dict[str, Buffer] = {}
        attributes = view_attributes(view, self.info.fingerprint, sequences, identity, details, layout)
        group = zarr.create_group(MemoryStore(contents), attributes=attributes)
        rows = layout.plan.shards * layout.plan.shard_tokens
        for spec in self._encoding.arrays(self.info.top_k) + sample_arrays(self.info.draws, self._encoding):
            create_token_array(group, spec, rows, layout.plan.shard_tokens, layout.chunk_tokens)
        added = _View(layout, dict(contents))
        if existing is None:
            if own is not None:
                examples = own.positions([record.example_id for record in self._examples])
                write_own(group.create_group("examples"), examples, own.sequences, layout.plan.answer_start)
                if own.teacher is not None:
                    _write_vocabulary(group, layout.vocabulary)
            key = view_key(view)
            put_objects(self.objects, key, contents, {"view": view}, what=f"view {view}", below=f"teachers/{view}/")
        return added

    def _own_layout(self, own: OwnSequences) -> ViewLayout:
        """The layout of a view with sequences of its own, with the store's vocabulary."""
        tokens = self._layout.tokens if own.teacher is None else own.teacher.tokens
        if tokens.tokenizer_size < self.info.top_k:
            raise StoreError(
                f"own sequences: expected a tokenizer of at least {self.info.top_k} tokens, as many as the store keeps "
                f"for each answer token, got {tokens.tokenizer_size}"
            )
        plan, chunk_tokens = plan_shards(
            [sequence.answer_length for sequence in own.sequences], self._spec.shard_tokens, self._spec.chunk_tokens
        )
        return ViewLayout(plan, chunk_tokens, tokens, self._layout.vocabulary)

    def _own_vocabulary(
        self, view: str, teacher: OtherTeacher, existing: Mapping[str, ObjectEntry] | None
    ) -> Vocabulary:
        """The numbering of another teacher's tokens: that of the view that exists, or a new one."""
        if existing is not None:
            return _read_vocabulary(self.objects, existing, f"teachers/{view}/")
        return _learnt(teacher.vocabulary, teacher.tokens.tokenizer_size)

    def plan_of(self, view: str) -> ShardPlan:
        """Which rows of a view that was added belong to which example."""
        return self._views[view].layout.plan

    def missing_shards(self, view: str) -> list[int]:
        """Shards of a view that was added which no manifest marks as done."""
        done = done_shards(self.objects, view)
        return [shard for shard in range(self.plan_of(view).shards) if shard not in done]

    def write_shard(self, view: str, shard: int, rows: TeacherRows, details: Mapping[str, Any] | None = None) -> None:
        """Encode and write one shard whole, then mark it done.

        Args:
            view: a view declared with `add_view`.
            shard: index below `plan_of(view).shards`.
            rows: the used rows, (plan_of(view).used_rows(shard), top_k), examples in order.
            details: recorded in the shard's manifest (a token budget that fell, say).

        Raises:
            StoreError: rows that do not fit the shard, or that no teacher can have meant.
        """
        layout, metadata = self._views[view]
        plan, vocabulary = layout.plan, layout.vocabulary
        expected = (plan.used_rows(shard), self.info.top_k)
        if rows.token_ids.shape != expected:
            raise StoreError(f"view {view}, shard {shard}: expected rows {expected}, got {rows.token_ids.shape}")
        rows.check(layout.tokens.tokenizer_size, layout.tokens.vocab_size)
        check_samples(rows, self.info.signal, self.info.draws, layout.tokens.tokenizer_size)
        arrays = self._encoding.encode(rows, vocabulary)
        arrays |= encode_samples(rows, vocabulary, self._encoding)
        contents = dict(metadata)
        group = zarr.open_group(MemoryStore(contents), mode="r+")
        region = slice(shard * plan.shard_tokens, (shard + 1) * plan.shard_tokens)
        for name, values in arrays.items():
            padded = np.zeros((plan.shard_tokens, *values.shape[1:]), dtype=values.dtype)
            padded[: len(values)] = values
            with zarr.config.set({"array.write_empty_chunks": True}):  # zeros are data: write them
                array = array_of(group, name)  # takes the setting over when it is opened
                if padded.ndim == 1:
                    array[region] = padded
                for block in rank_blocks(padded.shape[1]) if padded.ndim == 2 else ():
                    # pcodec takes contiguous memory only
                    array[region, block] = np.ascontiguousarray(padded[:, block])
        written = {key: data for key, data in contents.items() if key not in metadata}
        examples = plan.examples_of(shard)
        about = {"view": view, "shard": shard, "examples": [examples.start, examples.stop], **as_json(details or {})}
        where = f"view {view}, shard {shard}"
        put_objects(self.objects, shard_key(view, shard), written, about, what=where, below=f"teachers/{view}/")


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
                numbering = _learnt(vocabulary, spec.tokenizer_size)
                attributes = root_attributes(spec, identity, plan, numbering)
                _create(objects, attributes, spec, plan, examples, validation, numbering)
        info = StoreInfo.from_attributes(attributes)
        yield StoreBuilder(objects, spec, examples, info, ViewLayout(plan, chunk_tokens, info.tokens, numbering))


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
    _write_vocabulary(root, vocabulary)
    write_examples(root.create_group("examples"), examples, plan.answer_start, spec.tasks, spec.languages)
    lengths = np.array([record.sequence.answer_length for record in validation], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    write_examples(root.create_group("validation"), validation, starts, spec.tasks, spec.languages)
    put_objects(objects, BASE_KEY, made, {}, what="the examples")


def _reopen(objects: ObjectStore, identity: Mapping[str, Any]) -> tuple[dict[str, Any], Vocabulary]:
    """Root attributes and vocabulary of a store that exists."""
    where = f"--store {shlex.quote(objects.url)}"
    entries, _ = read_manifest(objects, BASE_KEY)
    root = read_root(objects)
    require_kind(objects.url, root, FORMAT)
    if (version := root.get("format_version")) != FORMAT_VERSION:
        readable = "which is read but not built on" if version in READABLE_VERSIONS else "which is not known here"
        raise StoreError(
            f"{where}: has format version {version}, {readable}; expected {FORMAT_VERSION}: build into another --store"
        )
    refuse_difference(where, root["identity"], identity, ABSENT)
    return root, _read_vocabulary(objects, entries, "")


def _write_vocabulary(group: zarr.Group, vocabulary: Vocabulary) -> None:
    """Freeze a numbering below a group."""
    arrays = group.create_group("vocabulary")
    for name, values in vocabulary.arrays().items():
        create_flat_array(arrays, name, values, "pcodec")


def _read_vocabulary(objects: ObjectStore, entries: Mapping[str, ObjectEntry], prefix: str) -> Vocabulary:
    """The numbering that was frozen below the group at `prefix`."""
    place = f"{prefix}vocabulary"
    buffer = default_buffer_prototype().buffer
    documents = {
        key: buffer.from_bytes(read_object(objects, key, entry))
        for key, entry in entries.items()
        if key.startswith(f"{place}/")
    }
    group = zarr.open_group(MemoryStore(documents), path=place, mode="r")
    return Vocabulary.from_arrays(lambda name: array_of(group, name))


def _learnt(vocabulary: Callable[[], Vocabulary], tokens: int) -> Vocabulary:
    """A new numbering of that many tokens."""
    numbering = vocabulary()
    if len(numbering.tokens) != tokens:
        raise StoreError(f"vocabulary: expected {tokens} tokens, got {len(numbering.tokens)}")
    return numbering
