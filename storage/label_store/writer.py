"""Building a label store: rows and folds first, then each view shard by shard, each marked done last.

Nothing that is done is ever written again. Before the first shard of a fold a manifest says who scores the fold
and what it had seen: a scorer that had seen a prompt of the fold is refused, and so is a second scorer.

Shape letters: N training rows of the store, n rows of a shard.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from logitbank.errors import StoreError, counted
from logitbank.preference import CLASSES, Pair, prompt_keys, row_id_of
from logitbank.storage.groups import (
    array_of,
    as_json,
    coder,
    create_flat_array,
    hash_json,
    put_objects,
    read_root,
    refuse_difference,
    require_kind,
    require_view_name,
)
from logitbank.storage.label_store.layout import FORMAT, FORMAT_VERSION, FoldPlan, plan_folds
from logitbank.storage.label_store.pairs import hash_pairs, write_pairs
from logitbank.storage.label_store.prompts import Keyed, prompt_problems
from logitbank.storage.label_store.seen import SeenRows, said_of
from logitbank.storage.label_store.spec import LabelSpec, LabelStoreInfo, Scorer
from logitbank.storage.objects import (
    BASE_KEY,
    ObjectStore,
    done_shards,
    fold_key,
    open_objects,
    read_manifest,
    read_object,
    shard_key,
    view_key,
)

FOLDS_KEY = "folds.json"


class _Rows(NamedTuple):
    """Rows of one kind, and the columns that only they have."""

    pairs: Sequence[Pair]
    columns: Mapping[str, NDArray[np.int8]]


class LabelStoreBuilder:
    """Write access to one label store; made by `open_label_builder`.

    Attributes:
        info: what the store is.
        plan: which rows belong to which shard.
    """

    def __init__(self, objects: ObjectStore, info: LabelStoreInfo, plan: FoldPlan, train: Sequence[Pair]) -> None:
        self.objects = objects
        self.info = info
        self.plan = plan
        self._train = train
        self._prompt_key = prompt_keys(train)
        self._metadata: dict[str, dict[str, Buffer]] = {}
        self._claimed: dict[tuple[str, int], tuple[Any, ...]] = {}

    def add_view(self, view: str, identity: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        """Declare a view, or check that the one that exists was declared the same way.

        Args:
            view: its name.
            identity: what must not change between runs: how pairs are packed, how they are scored …; not the
                weights, which differ from fold to fold.
            details: for information.

        Raises:
            StoreError: a name that cannot be one, or another identity than the view's.
        """
        require_view_name(view)
        identity = as_json(identity)
        attributes = {
            "view": view,
            "identity": identity,
            "details": as_json(details),
            "fingerprint": hash_json([self.info.fingerprint, identity]),
        }
        contents: dict[str, Buffer] = {}
        group = zarr.create_group(MemoryStore(contents), attributes=attributes)
        group.create_array(
            "logits",
            shape=(self.plan.shards * self.plan.shard_rows, len(CLASSES)),
            dtype=np.dtype(np.float32),
            chunks=(self.plan.shard_rows, len(CLASSES)),
            filters=(),
            fill_value=0,
            config={"write_empty_chunks": True},
            **coder("pcodec"),
        )
        self._metadata[view] = dict(contents)
        key, root = view_key(view), f"teachers/{view}/zarr.json"
        with self.objects.base_lock():
            if not self.objects.exists(key):
                about = {"view": view}
                put_objects(self.objects, key, contents, about, what=f"view {view}", below=f"teachers/{view}/")
                return
        entries, _ = read_manifest(self.objects, key)
        stored = json.loads(read_object(self.objects, root, entries[root]))["attributes"]
        refuse_difference(f"view {view}", stored["identity"], identity)

    def missing_shards(self, view: str, fold: int | None = None) -> list[int]:
        """Shards of a view, or of one of its folds, that no manifest marks as done.

        Raises:
            StoreError: a fold that the store does not have.
        """
        if fold is not None and not 0 <= fold < self.info.folds:
            raise StoreError(f"--fold: expected 0 to {self.info.folds - 1} (the store's folds), got {fold}")
        done = done_shards(self.objects, view)
        wanted = range(self.plan.shards) if fold is None else self.plan.shards_of(fold)
        return [shard for shard in wanted if shard not in done]

    def shard_rows(self, shard: int) -> range:
        """The training rows of a shard."""
        return self.plan.rows_of(shard)

    def shard_fold(self, shard: int) -> int:
        """The fold of a shard's rows."""
        return int(self.plan.fold[shard])

    def write_shard(self, view: str, shard: int, logits: NDArray[np.float32], scorer: Scorer) -> None:
        """Write one shard whole, then mark it done.

        Args:
            view: a view declared with `add_view`.
            shard: its number.
            logits: (n, 3) float32, a row for each of `shard_rows(shard)`.
            scorer: who gave them.

        Raises:
            StoreError: logits of a different shape or not finite; a scorer that saw a prompt of the shard, or that is
                not the one that scored other rows of the fold; a place that cannot be written.
        """
        rows, fold = self.shard_rows(shard), self.shard_fold(shard)
        self._check_logits(f"view {view}, shard {shard}", rows, logits)
        seen = None if scorer.seen is None else SeenRows.of(scorer.seen, self._prompt_key)
        self._refuse_seen(view, fold, scorer, seen)
        self._claim(view, fold, scorer, seen)
        contents = dict(self._metadata[view])
        group = zarr.open_group(MemoryStore(contents), mode="r+")
        padded = np.zeros((self.plan.shard_rows, len(CLASSES)), np.float32)
        padded[: len(logits)] = logits
        with zarr.config.set({"array.write_empty_chunks": True}):  # zeros are data: write them
            array = array_of(group, "logits")  # takes the setting over when it is opened
            array[shard * self.plan.shard_rows : (shard + 1) * self.plan.shard_rows] = padded
        written = {key: data for key, data in contents.items() if key not in self._metadata[view]}
        about = {
            "view": view,
            "shard": shard,
            "examples": [rows.start, rows.stop],
            "fold": fold,
            "scorer": said_of(scorer, seen),
            "seen": None if seen is None else seen_key(view, fold),
            "details": as_json(scorer.details),
        }
        where = f"view {view}, shard {shard}"
        put_objects(self.objects, shard_key(view, shard), written, about, what=where, below=f"teachers/{view}/")

    def _check_logits(self, where: str, rows: range, logits: NDArray[np.float32]) -> None:
        expected = (len(rows), len(CLASSES))
        if logits.shape != expected or logits.dtype != np.float32:
            raise StoreError(f"{where}: expected logits {expected} float32, got {logits.shape} {logits.dtype}")
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise StoreError(
                f"{where}: expected finite logits, got {logits[bad[0]].tolist()} for "
                f"{self._train[rows[bad[0]]].example_id} ({counted(len(bad), 'such row')}); this shard was not written"
            )

    def _refuse_seen(self, view: str, fold: int, scorer: Scorer, seen: SeenRows | None) -> None:
        """Raise `StoreError` for a scorer that is not out of fold."""
        where, remedy = f"view {view}, fold {fold}", f"score it with a teacher trained with --held-out-fold {fold}"
        rows = self.plan.rows_of_fold(fold)
        ways = () if seen is None else (("trained on", seen.trained), ("was selected on", seen.selected))
        for way, mask in ways:
            leaked = rows.start + np.flatnonzero(mask[rows.start : rows.stop])
            if len(leaked):
                prompts = counted(len(np.unique(self._prompt_key[leaked])), "prompt")
                row = self._train[int(leaked[0])].row_id
                raise StoreError(
                    f"{where}: {scorer.model} {way} {prompts} of it (first row {row}), "
                    f"so its logits are not out of fold; {remedy}"
                )
        if scorer.fold is not None and scorer.fold != fold:
            raise StoreError(f"{where}: {scorer.model} was trained without fold {scorer.fold}, not this one; {remedy}")

    def _claim(self, view: str, fold: int, scorer: Scorer, seen: SeenRows | None) -> None:
        """Write down who scores a fold, or check that it is the one that began it."""
        data = None if seen is None else seen.encoded()
        now = (scorer.weights, scorer.fold, data)
        if self._claimed.get((view, fold)) == now:
            return
        key, place = fold_key(view, fold), seen_key(view, fold)
        with self.objects.base_lock():
            if not self.objects.exists(key):
                contents = {} if data is None else {place: _as_buffer(data)}
                claim = {"view": view, "fold": fold, "scorer": said_of(scorer, seen)}
                put_objects(self.objects, key, contents, claim, what=f"view {view}, fold {fold}")
        entries, about = read_manifest(self.objects, key)
        before = about["scorer"]
        if before["weights"] != scorer.weights:
            raise StoreError(
                f"view {view}, fold {fold}: started with {before['model']} (weights {before['weights'][:12]}), but "
                f"{scorer.model} has weights {scorer.weights[:12]}; a fold is scored by one teacher: use that one, "
                "or another --view"
            )
        stored = read_object(self.objects, place, entries[place]) if place in entries else None
        if (before["held_out_fold"], stored) != (scorer.fold, data):
            raise StoreError(
                f"view {view}, fold {fold}: started with the weights of {scorer.model}, but with a different record of "
                "training prompts; score it from the same directory, or use another --view"
            )
        self._claimed[view, fold] = now


def seen_key(view: str, fold: int) -> str:
    """Key of the object that says what the scorer of a fold had seen."""
    return f"teachers/{view}/seen/{fold}"


@contextlib.contextmanager
def open_label_builder(
    url: str,
    spec: LabelSpec,
    train: Sequence[Pair],
    folds: NDArray[np.int8],
    validation: Sequence[Pair],
    parts: NDArray[np.int8],
    external: Sequence[Pair],
    *,
    worker: int | None = None,
    workers: int | None = None,
) -> Iterator[LabelStoreBuilder]:
    """Create a label store, or resume the one at `url` if it was created from the same inputs.

    Args:
        url: directory or fsspec URL.
        spec: what the store is built from.
        train: training rows in the order of their folds.
        folds: (N,) int8, the fold of each.
        validation: held-out rows; teachers do not score them.
        parts: (M,) int8, what each of them serves: 0 selection, 1 calibration, 2 holdout.
        external: rows from elsewhere; teachers do not score them.
        worker: index of this worker, where several were started on purpose.
        workers: how many there are.

    Raises:
        StoreError: the store was created from other inputs (says which field, both values), rows that no store can
            hold, another process is writing it, or the location cannot be written.
    """
    objects = open_objects(url)
    folds, parts = np.asarray(folds, np.int8), np.asarray(parts, np.int8)
    rows = {
        "train": _Rows(train, {"fold": folds}),
        "validation": _Rows(validation, {"part": parts}),
        "external": _Rows(external, {}),
    }
    _check(rows)
    plan = plan_folds(folds, spec.folds, spec.shard_rows)
    identity = as_json(
        {
            "folds": spec.folds,
            "seed": spec.seed,
            "identity": spec.identity,
            "shard_rows": plan.shard_rows,
            **{name: {"count": len(of.pairs), "hash": hash_pairs(*of)} for name, of in rows.items()},
        }
    )
    with objects.builder_lock(worker, workers):
        # Alone, whatever is half-written is a dead process's; beside other workers only what is old is.
        objects.remove_partials(older_than=0.0 if worker is None else 3600.0)
        with objects.base_lock():
            if objects.exists(BASE_KEY):
                attributes = _reopen(objects, identity)
            else:
                attributes = _root_attributes(spec, identity, plan)
                _create(objects, attributes, plan, rows)
        yield LabelStoreBuilder(objects, LabelStoreInfo.from_attributes(attributes), plan, train)


def _check(rows: Mapping[str, _Rows]) -> None:
    """Raise `StoreError` for rows without a number that they need, or with prompts where they must not be."""
    for pairs, columns in rows.values():
        for name, numbers in columns.items():
            if len(numbers) != len(pairs):
                raise StoreError(f"{name}s: expected one for each row ({len(pairs)}), got {len(numbers)}")
    keyed = (Keyed([pair.example_id for pair in pairs], prompt_keys(pairs)) for pairs, _ in rows.values())
    for problem in prompt_problems(next(keyed), rows["train"].columns["fold"], *keyed):
        raise StoreError(f"{problem}; rows that share a prompt must be in one fold, and not in validation")


def _create(objects: ObjectStore, attributes: Mapping[str, Any], plan: FoldPlan, rows: Mapping[str, _Rows]) -> None:
    """Write the base: root, rows and `folds.json`, and the manifest that says that they exist."""
    made: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(made), attributes=dict(attributes))
    for name, (pairs, columns) in rows.items():
        group = root.create_group(name)
        write_pairs(group, pairs, columns)
        if name == "train":
            create_flat_array(group, "row", plan.places(), "pcodec")
    train, columns = rows["train"]
    made[FOLDS_KEY] = _as_buffer(folds_document([pair.example_id for pair in train], columns["fold"]))
    put_objects(objects, BASE_KEY, made, {}, what="the rows")


def _root_attributes(spec: LabelSpec, identity: Mapping[str, Any], plan: FoldPlan) -> dict[str, Any]:
    """Attributes of a new store's root group; `LabelStoreInfo.from_attributes` reads them."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": hash_json(identity),
        "identity": identity,
        "classes": list(CLASSES),
        "folds": spec.folds,
        "seed": spec.seed,
        "shard_rows": plan.shard_rows,
        "shards": plan.shards,
        "counts": {name: identity[name]["count"] for name in ("train", "validation", "external")},
        "config": as_json(spec.config),
    }


def _reopen(objects: ObjectStore, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Root attributes of a store that exists."""
    root = read_root(objects)
    require_kind(objects.url, root, FORMAT)
    where = f"--store {shlex.quote(objects.url)}"
    if (version := root.get("format_version")) != FORMAT_VERSION:
        raise StoreError(
            f"{where}: has format version {version}, which this version cannot read; expected {FORMAT_VERSION}: "
            "build into another --store"
        )
    refuse_difference(where, root["identity"], identity)
    return root


def folds_document(example_ids: Sequence[str], folds: NDArray[np.int8]) -> bytes:
    """What `folds.json` says: the ids that the rows of each fold have in their file, as JSON, in store order."""
    rows: dict[str, list[str]] = {str(fold): [] for fold in np.unique(folds)}
    for example_id, fold in zip(example_ids, folds.tolist(), strict=True):
        rows[str(fold)].append(row_id_of(example_id))
    return json.dumps(rows, indent=1).encode()


def _as_buffer(data: bytes) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(data)
