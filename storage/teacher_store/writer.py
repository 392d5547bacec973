"""Building a teacher store: base first, then each view shard by shard, each marked done last.

Nothing that is done is ever written again. A killed build leaves objects that no manifest lists;
the next run writes them anew, with the same bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from logitbank.errors import StoreError
from logitbank.registry import ENCODINGS
from logitbank.storage.groups import (
    array_of,
    as_json,
    put_objects,
    refuse_difference,
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
from logitbank.storage.teacher_store.base import (
    create_base,
    lay_out,
    learned,
    planned_of,
    read_names,
    read_plan,
    read_vocabulary,
    reopen_base,
    write_planned,
    write_vocabulary,
)
from logitbank.storage.teacher_store.columns import ExampleColumns, write_own
from logitbank.storage.teacher_store.encodings import Encoding
from logitbank.storage.teacher_store.examples import ExampleRecord
from logitbank.storage.teacher_store.layout import ShardPlan, create_token_array, plan_shards, rank_blocks
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.samples import check_samples, encode_samples, sample_arrays
from logitbank.storage.teacher_store.spec import (
    PlannedExamples,
    StoreInfo,
    StoreSpec,
    view_attributes,
    view_identity,
)
from logitbank.storage.teacher_store.views import OtherTeacher, OwnSequences, Saw, ViewLayout
from logitbank.storage.teacher_store.vocabulary import Vocabulary


class _View(NamedTuple):
    """A view that was added: its layout, and the metadata documents of its group and arrays."""

    layout: ViewLayout
    metadata: dict[str, Buffer]


class StoreBuilder:
    """Write access to one store; made by `open_builder`."""

    def __init__(
        self,
        objects: ObjectStore,
        spec: StoreSpec,
        info: StoreInfo,
        layout: ViewLayout,
    ) -> None:
        self.objects = objects
        self.plan = layout.plan
        self.info = info
        self._spec = spec
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
            sequences: whether the teacher saw the examples as the student does, or
                their answers after a different `context`.
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
                examples = own.positions(read_names(self.objects))
                write_own(group.create_group("examples"), examples, own.sequences, layout.plan.answer_start)
                if own.teacher is not None:
                    write_vocabulary(group, layout.vocabulary)
            key = view_key(view)
            put_objects(self.objects, key, contents, {"view": view}, what=f"view {view}", below=f"teachers/{view}/")
        return added

    def _own_layout(self, own: OwnSequences) -> ViewLayout:
        """The layout of a view with sequences of its own, with the store's vocabulary."""
        tokens = self._layout.tokens if own.teacher is None else own.teacher.tokens
        if tokens.tokenizer_size < self.info.top_k:
            raise StoreError(
                f"own sequences: expected a tokenizer of at least {self.info.top_k} tokens, the number that the "
                f"store keeps per answer token, got {tokens.tokenizer_size}"
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
            return read_vocabulary(self.objects, existing, f"teachers/{view}/")
        return learned(teacher.vocabulary, teacher.tokens.tokenizer_size)

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


class BuildSite:
    """The right to build one store; made by `open_site`.

    Attributes:
        objects: where it is.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    def alone(self) -> AbstractContextManager[None]:
        """Wait until no other process plans this store or creates its base, then hold them off."""
        return self.objects.base_lock()

    def has_base(self) -> bool:
        """Whether there is a store already."""
        return self.objects.exists(BASE_KEY)

    def builder(
        self,
        spec: StoreSpec,
        planned: PlannedExamples,
        entries: Mapping[str, ObjectEntry],
        vocabulary: Callable[[], Vocabulary],
        plan: ShardPlan | None = None,
    ) -> StoreBuilder:
        """Create a store of examples that were written, or resume the one that exists; to be called `alone`.

        Args:
            spec: what the store is built from.
            planned: what is known of its examples.
            entries: what `write_planned` gave; of no account where the store exists.
            vocabulary: see `open_builder`.
            plan: which rows belong to which example; by default it is read from the store.

        Raises:
            StoreError: see `open_builder`.
        """
        if self.has_base():
            attributes, numbering = reopen_base(self.objects, spec, planned)
        else:
            attributes, numbering = create_base(self.objects, spec, planned, entries, vocabulary)
        if plan is None:
            plan = read_plan(self.objects, planned, read_manifest(self.objects, BASE_KEY)[0])
        info = StoreInfo.from_attributes(attributes)
        return StoreBuilder(self.objects, spec, info, ViewLayout(plan, planned.chunk_tokens, info.tokens, numbering))


@contextlib.contextmanager
def open_site(url: str, *, worker: int | None = None, workers: int | None = None) -> Iterator[BuildSite]:
    """Hold the right to build at a URL.

    Args:
        url: directory or fsspec URL.
        worker: index of this worker, where several were started on purpose.
        workers: how many there are.

    Raises:
        StoreError: another process is building there, or nothing can be written.
    """
    objects = open_objects(url)
    with objects.builder_lock(worker, workers):
        # Alone, whatever is half-written is a dead process's; beside other workers only what is old is.
        objects.remove_partials(older_than=0.0 if worker is None else 3600.0)
        yield BuildSite(objects)


@contextlib.contextmanager
def open_builder(
    url: str,
    spec: StoreSpec,
    examples: Iterable[ExampleRecord],
    validation: Iterable[ExampleRecord],
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
    with contextlib.closing(ExampleColumns(examples)) as asked, contextlib.closing(ExampleColumns(validation)) as held:
        plan, chunk_tokens = lay_out(asked, spec.shard_tokens, spec.chunk_tokens)
        planned = planned_of(plan, chunk_tokens, asked, held)
        with open_site(url, worker=worker, workers=workers) as site:
            with site.alone():
                written = {}
                if not site.has_base():
                    written = write_planned(site.objects, plan, asked, held, spec.tasks, spec.languages)
                builder = site.builder(spec, planned, written, vocabulary, plan)
            yield builder
