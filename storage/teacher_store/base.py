"""The base of a store, in two steps: its examples, once they are planned; then the root that makes it a store.

Between the two a teacher is loaded, which may take long, and may happen in another process or after a restart.
What the first step wrote is listed in `plan/base.json`; only the manifest of the second says that there is a store.

Shape letters: N examples.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from logitbank.errors import StoreError
from logitbank.storage.groups import (
    ExampleIds,
    array_of,
    create_flat_array,
    put_objects,
    put_parts,
    read_all,
    read_root,
    refuse_difference,
    require_kind,
    starts_of,
)
from logitbank.storage.objects import (
    BASE_KEY,
    ObjectEntry,
    ObjectStore,
    read_manifest,
    read_object,
)
from logitbank.storage.teacher_store.columns import ExampleColumns, write_examples
from logitbank.storage.teacher_store.layout import (
    FORMAT,
    FORMAT_VERSION,
    READABLE_VERSIONS,
    ShardPlan,
    plan_shards,
)
from logitbank.storage.teacher_store.spec import ABSENT, PlannedExamples, StoreSpec, identity_of, root_attributes
from logitbank.storage.teacher_store.vocabulary import Vocabulary

ROOT = "zarr.json"


def planned_of(
    plan: ShardPlan, chunk_tokens: int, examples: ExampleColumns, validation: ExampleColumns
) -> PlannedExamples:
    """What must be known about examples whose rows are laid out."""
    found = ({"count": len(columns), "hash": columns.hash} for columns in (examples, validation))
    return PlannedExamples(plan.shard_tokens, chunk_tokens, plan.shards, int(plan.answer_length.sum()), *found)


def lay_out(columns: ExampleColumns, shard_tokens: int, chunk_tokens: int) -> tuple[ShardPlan, int]:
    """See `layout.plan_shards`."""
    return plan_shards(columns.answer_length.read(), shard_tokens, chunk_tokens)


def write_planned(
    objects: ObjectStore,
    plan: ShardPlan,
    examples: ExampleColumns,
    validation: ExampleColumns,
    tasks: Sequence[str],
    languages: Sequence[str],
) -> dict[str, ObjectEntry]:
    """Write all of the base that depends on the examples alone; what its manifest will say of these objects.

    Raises:
        StoreError: see `ExampleColumns.check`; or the place cannot be written.
    """
    made: dict[str, Buffer] = {}
    entries: dict[str, ObjectEntry] = {}
    root = zarr.create_group(MemoryStore(made))

    def put(documents: bool = False) -> None:
        ready = {key: made.pop(key) for key in list(made) if documents or not key.endswith(ROOT)}
        entries.update(put_parts(objects, ready, what="the examples"))

    write_examples(root.create_group("examples"), examples, plan.answer_start, tasks, languages, put)
    starts = starts_of(validation.answer_length.read())
    write_examples(root.create_group("validation"), validation, starts, tasks, languages, put)
    del made[ROOT]
    put(documents=True)
    return entries


def create_base(
    objects: ObjectStore,
    spec: StoreSpec,
    planned: PlannedExamples,
    entries: Mapping[str, ObjectEntry],
    vocabulary: Callable[[], Vocabulary],
) -> tuple[dict[str, Any], Vocabulary]:
    """Make a store of examples that are already there: vocabulary, root, and the manifest that says that it exists."""
    numbering = learned(vocabulary, spec.tokenizer_size)
    attributes = root_attributes(spec, identity_of(spec, planned), planned, numbering)
    made: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(made), attributes=attributes)
    write_vocabulary(root, numbering)
    put_objects(objects, BASE_KEY, made, {}, what="the base", also=entries)
    return attributes, numbering


def reopen_base(objects: ObjectStore, spec: StoreSpec, planned: PlannedExamples) -> tuple[dict[str, Any], Vocabulary]:
    """Root attributes and vocabulary of a store that exists; StoreError if it was made of something else."""
    where = f"--store {shlex.quote(objects.url)}"
    entries, _ = read_manifest(objects, BASE_KEY)
    root = read_root(objects)
    require_kind(objects.url, root, FORMAT)
    if (version := root.get("format_version")) != FORMAT_VERSION:
        readable = "which is read but not built on" if version in READABLE_VERSIONS else "which is not known here"
        raise StoreError(
            f"{where}: has format version {version}, {readable}; expected {FORMAT_VERSION}: build into another --store"
        )
    refuse_difference(where, root["identity"], identity_of(spec, planned), ABSENT)
    return root, read_vocabulary(objects, entries, "")


def read_plan(objects: ObjectStore, planned: PlannedExamples, entries: Mapping[str, ObjectEntry]) -> ShardPlan:
    """Which rows belong to which example, from examples in the store."""
    group = _read_arrays(objects, entries, "examples", ("answer_start", "answer_length"))
    starts, lengths = (read_all(array_of(group, name)) for name in ("answer_start", "answer_length"))
    first = np.searchsorted(starts // planned.shard_tokens, np.arange(planned.shards + 1)).astype(np.int64)
    return ShardPlan(planned.shard_tokens, starts, lengths, first)


def read_names(objects: ObjectStore) -> ExampleIds:
    """The ids of a store's examples."""
    entries, _ = read_manifest(objects, BASE_KEY)
    group = _read_arrays(objects, entries, "examples", ("example_ids", "task"))
    return ExampleIds.joined(read_all(array_of(group, "example_ids")), array_of(group, "task").shape[0])


def write_vocabulary(group: zarr.Group, vocabulary: Vocabulary) -> None:
    """Freeze a numbering below a group."""
    arrays = group.create_group("vocabulary")
    for name, values in vocabulary.arrays().items():
        create_flat_array(arrays, name, values, "pcodec")


def read_vocabulary(objects: ObjectStore, entries: Mapping[str, ObjectEntry], prefix: str) -> Vocabulary:
    """The numbering that was frozen below the group at `prefix`."""
    group = _read_arrays(objects, entries, f"{prefix}vocabulary")
    return Vocabulary.from_arrays(lambda name: array_of(group, name))


def learned(vocabulary: Callable[[], Vocabulary], tokens: int) -> Vocabulary:
    """A new numbering of that many tokens."""
    numbering = vocabulary()
    if len(numbering.tokens) != tokens:
        raise StoreError(f"vocabulary: expected {tokens} tokens, got {len(numbering.tokens)}")
    return numbering


def _read_arrays(
    objects: ObjectStore, entries: Mapping[str, ObjectEntry], place: str, names: Sequence[str] | None = None
) -> zarr.Group:
    """A group with some of its arrays, or all of them, each object checked against its entry."""
    buffer = default_buffer_prototype().buffer
    wanted = tuple(f"{place}/{name}/" for name in names) if names is not None else (f"{place}/",)
    documents = {
        key: buffer.from_bytes(read_object(objects, key, entry))
        for key, entry in entries.items()
        if key.startswith(wanted) or key == f"{place}/{ROOT}"
    }
    return zarr.open_group(MemoryStore(documents), path=place, mode="r")
