"""Reading a label store. Every byte is checked against the manifest before it becomes a number or a text.

Shape letters: N training rows.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from logitbank.errors import CorruptStoreError, IncompleteStoreError, StoreError, counted
from logitbank.preference import CLASSES
from logitbank.storage.groups import VerifiedObjects, hash_json, open_root, read_root, view_names
from logitbank.storage.label_store.layout import FORMAT, FORMAT_VERSION, FoldPlan, plan_folds
from logitbank.storage.label_store.pairs import PairTable
from logitbank.storage.label_store.seen import SeenRows
from logitbank.storage.label_store.spec import LabelStoreInfo, ScoredShard
from logitbank.storage.label_store.writer import seen_key
from logitbank.storage.objects import (
    done_shards,
    fold_key,
    open_objects,
    read_manifest,
    read_object,
    shard_key,
    view_key,
)


class LabelStore:
    """Read access to one label store.

    Attributes:
        url: where it is.
        info: what it is.
        train: the training rows, in the order of their folds.
        validation: held-out rows, without logits.
        external: rows from elsewhere, without logits.
        views: names of the views it has, finished or not.
        plan: which training rows belong to which shard.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects = open_objects(url)
        self._source, attributes = open_root(url, self.objects, FORMAT, (FORMAT_VERSION,))
        self.info = LabelStoreInfo.from_attributes(attributes)
        self._zarr = MemoryStore(self._source, read_only=True)
        self.train = PairTable(lambda name: self.array(f"train/{name}"), "fold")
        self.validation = PairTable(lambda name: self.array(f"validation/{name}"), "part")
        self.external = PairTable(lambda name: self.array(f"external/{name}"))
        self.plan: FoldPlan = plan_folds(self.train.fold, self.info.folds, self.info.shard_rows)
        self.views = view_names(self.objects)

    @classmethod
    def open(cls, url: str) -> LabelStore:
        """Open a store for reading.

        Raises:
            StoreError: there is none, one of another format version, or a teacher store.
            CorruptStoreError: a damaged root, manifest or table of rows.
        """
        return cls(url)

    def view_attributes(self, view: str) -> Mapping[str, Any]:
        """`identity`, `details` and `fingerprint` of a view; StoreError if there is none."""
        self._require_exists(view)
        key = f"teachers/{view}/zarr.json"
        entries, _ = read_manifest(self.objects, view_key(view))
        attributes: dict[str, Any] = json.loads(read_object(self.objects, key, entries[key]))["attributes"]
        return attributes

    def view_fingerprint(self, view: str, folds: Sequence[int] | None = None) -> str:
        """What tells the logits of some folds of a view (all by default) from others: SHA-256.

        Raises:
            StoreError: as `require_view`.
        """
        self.require_view(view, folds)
        wanted = range(self.info.folds) if folds is None else sorted(folds)
        weights = {shard.fold: shard.weights for shard in self.scorers(view)}
        return hash_json([self.view_attributes(view)["fingerprint"], [[fold, weights[fold]] for fold in wanted]])

    def missing_shards(self, view: str, fold: int | None = None) -> list[int]:
        """Shards of a view, or of one of its folds, that are not written yet."""
        done = done_shards(self.objects, view)
        wanted = range(self.plan.shards) if fold is None else self.plan.shards_of(fold)
        return [shard for shard in wanted if shard not in done]

    def require_view(self, view: str, folds: Iterable[int] | None = None) -> None:
        """Check that a view has all rows of some folds, or of all.

        Raises:
            StoreError: no such view, or a fold that the store does not have.
            IncompleteStoreError: folds that are missing or half-built, named.
        """
        self._require_exists(view)
        wanted = list(range(self.info.folds) if folds is None else folds)
        strange = [fold for fold in wanted if not 0 <= fold < self.info.folds]
        if strange:
            raise StoreError(f"fold {strange[0]}: the store {shlex.quote(self.url)} has 0 to {self.info.folds - 1}")
        missing = set(self.missing_shards(view))
        lacking = [fold for fold in wanted if missing.intersection(self.plan.shards_of(fold))]
        if lacking:
            named = f"fold {lacking[0]}" if len(lacking) == 1 else f"folds {', '.join(map(str, lacking))}"
            raise IncompleteStoreError(
                f"--view {view}: {named} of {shlex.quote(self.url)} not scored yet; run build-teacher-cache "
                f"--view {view} --fold {lacking[0]} with a teacher trained without it"
            )

    def logits(self, view: str) -> NDArray[np.float32]:
        """(N, 3) float32, raw logits of `CLASSES`; NaN if no teacher scored the row.

        Raises:
            StoreError: no such view.
            CorruptStoreError: bytes that are missing or damaged.
        """
        self._require_exists(view)
        logits = np.full((len(self.train), len(CLASSES)), np.nan, np.float32)
        for rows, values in self._read_shards(view, sorted(done_shards(self.objects, view))):
            logits[rows.start : rows.stop] = values
        return logits

    def read_shard(self, view: str, shard: int) -> NDArray[np.float32]:
        """(n, 3) float32, the logits of one shard that is done."""
        ((_, values),) = self._read_shards(view, [shard])
        return values

    def _read_shards(self, view: str, shards: Sequence[int]) -> Iterator[tuple[range, NDArray[np.float32]]]:
        """The training rows of shards that are done, and their logits."""
        source = VerifiedObjects(self.objects)
        source.add_manifest(view_key(view))
        array = zarr.open_array(MemoryStore(source, read_only=True), path=f"teachers/{view}/logits", mode="r")
        for shard in shards:
            source.add_manifest(shard_key(view, shard))
            rows, start = self.plan.rows_of(shard), shard * self.plan.shard_rows
            try:
                values = np.asarray(array[start : start + len(rows)])
            except CorruptStoreError as error:
                raise CorruptStoreError(
                    f"{error}; delete {shard_key(view, shard)} and run the same build-teacher-cache command to write "
                    "this shard again"
                ) from error
            yield rows, values

    def scorers(self, view: str) -> list[ScoredShard]:
        """Who scored each shard that is done, in their order."""
        self._require_exists(view)
        done = sorted(done_shards(self.objects, view))
        return [ScoredShard.from_manifest(read_manifest(self.objects, shard_key(view, shard))[1]) for shard in done]

    def seen_rows(self, view: str, fold: int) -> SeenRows | None:
        """Which training rows the scorer of a fold had seen the prompts of; None if unknown.

        Raises:
            CorruptStoreError: missing or damaged.
        """
        place = seen_key(view, fold)
        try:
            entries, _ = read_manifest(self.objects, fold_key(view, fold))
        except FileNotFoundError:
            raise CorruptStoreError(
                f"{fold_key(view, fold)}: missing, although shards of the fold are finished"
            ) from None
        if place not in entries:
            return None
        data = read_object(self.objects, place, entries[place], f"view {view}, fold {fold}")
        try:
            return SeenRows.decoded(data, len(self.train))
        except ValueError:
            raise CorruptStoreError(f"{place}: expected {counted(len(self.train), 'row')}, got others") from None

    def _require_exists(self, view: str) -> None:
        if view not in self.views:
            have = ", ".join(self.views) or "none yet"
            raise StoreError(
                f"--view {shlex.quote(view)}: the store {shlex.quote(self.url)} has no such view (it has: {have})"
            )

    def array(self, path: str) -> zarr.Array[Any]:
        """One of the arrays beside the views, its chunks verified as they are read."""
        return zarr.open_array(self._zarr, path=path, mode="r")


def is_label_store(url: str) -> bool:
    """Whether there is a label store; a teacher store, or nothing, does not count.

    Raises:
        StoreError: the place cannot be reached.
        CorruptStoreError: a damaged manifest or root.
    """
    try:
        return read_root(open_objects(url)).get("format") == FORMAT
    except FileNotFoundError:
        return False
