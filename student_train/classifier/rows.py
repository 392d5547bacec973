"""From a label store to what training reads: which rows, their packed tokens, the teachers' mean probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from logitbank.configs import Config
from logitbank.preference import CLASSES, PackedPair
from logitbank.storage import LabelStore, PairTable
from logitbank.student_train.classifier.batch import PackedPairs, TrainingRows
from logitbank.student_train.classifier.checks import folds_learned, selection_rows, views_of
from logitbank.student_train.classifier.losses import average_views
from logitbank.student_train.classifier.selection import SelectionRows
from logitbank.student_train.records import Run
from logitbank.tasks.preference import PairPacker

SWAPPED_ROWS = {"none": (False, False), "external": (False, True), "all": (True, True)}  # of the store, of elsewhere


def training_rows(store: LabelStore, run: Run, packer: PairPacker, *, shows_progress: bool) -> TrainingRows:
    """The rows that a run learns from: the folds that it is not to leave out, then those of external files.

    `data.max_train_per_task` keeps a subset of them, drawn by the seed.
    """
    own = np.flatnonzero(np.isin(store.train.fold, folds_learned(store, run)))
    external = np.arange(0 if run.rows == "train" else len(store.external))
    own, external = _limited(own, external, run.config)
    places = [(store.train, own), (store.external, external)]
    teacher_NC, taught_N = _teacher(store, run, own)
    empty_EC = np.zeros((len(external), len(CLASSES)), np.float32)
    return TrainingRows(
        packed=_packed(places, packer, shows_progress=shows_progress),
        target_NC=np.concatenate([table.target[rows] for table, rows in places]),
        teacher_NC=np.concatenate([teacher_NC, empty_EC]),
        taught_N=np.concatenate([taught_N, np.zeros(len(external), np.bool_)]),
        external_N=np.repeat([False, True], [len(own), len(external)]),
        prompt_key_N=np.concatenate([table.prompt_key[rows] for table, rows in places]),
    )


def selection_of(store: LabelStore, packer: PairPacker, *, shows_progress: bool) -> SelectionRows:
    """The rows of the store that choose among checkpoints."""
    rows, table = selection_rows(store), store.validation
    packed = _packed([(table, rows)], packer, shows_progress=shows_progress)
    return SelectionRows(packed, table.target[rows], table.prompt_key[rows])


def swaps(rows: TrainingRows, swap: str) -> NDArray[np.bool_]:
    """(N,) which rows are shown in both orders, as `data.swap` says."""
    own, external = SWAPPED_ROWS[swap]
    return np.where(rows.external_N, external, own)


def views_fingerprint(store: LabelStore, run: Run) -> str | None:
    """What tells the views of a run from others, whatever fold it leaves out; None without views."""
    return _joined(store, run, lambda view: str(store.view_attributes(view)["fingerprint"]))


def scorers_fingerprint(store: LabelStore, run: Run) -> str | None:
    """What tells the weights that scored the rows of a run from others; None without views."""
    return _joined(store, run, lambda view: store.view_fingerprint(view, folds_learned(store, run)))


def teachers_of(store: LabelStore, run: Run) -> str | None:
    """The models that scored the rows of a run, for people to read; None without views."""
    names = {
        f"{scorer.model} (trained)" if scorer.trained_prompts else scorer.model
        for view in views_of(run)
        for scorer in store.scorers(view)
        if scorer.fold in folds_learned(store, run)
    }
    return ", ".join(sorted(names)) or None


def training_set(store: LabelStore, run: Run) -> str:
    """Hash of the rows that the runs of one experiment share, whatever fold each leaves out."""
    tables = {"train": ("train",), "external": ("external",)}.get(run.rows or "all", ("train", "external"))
    held = [table for table in tables if store.info.counts[table]] or ["train"]
    return _hash([str(store.info.identity[table]["hash"]) for table in held])


def _joined(store: LabelStore, run: Run, fingerprint: Callable[[str], str]) -> str | None:
    found = [fingerprint(view) for view in views_of(run)]
    return _hash(found) if found else None


def _hash(parts: Sequence[str]) -> str:
    """One part as it is, several hashed together."""
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _limited(
    own: NDArray[np.int64], external: NDArray[np.int64], config: Config
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    limit, count = config.data.max_train_per_task, len(own) + len(external)
    if limit is None or count <= limit:
        return own, external
    kept = np.sort(np.random.default_rng(config.seed).permutation(count)[:limit])
    return own[kept[kept < len(own)]], external[kept[kept >= len(own)] - len(own)]


def _teacher(store: LabelStore, run: Run, own: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The mean probabilities of the run's views in some training rows, and which of them have any."""
    views, distillation = views_of(run), run.config.distillation
    if not views:
        return np.zeros((len(own), len(CLASSES)), np.float32), np.zeros(len(own), np.bool_)
    logits = {view: store.logits(view)[own] for view in views}
    return average_views(logits, distillation.view_weights, distillation.temperature)


def _packed(
    places: list[tuple[PairTable, NDArray[np.int64]]], packer: PairPacker, *, shows_progress: bool
) -> PackedPairs:
    total = sum(len(rows) for _, rows in places)
    pairs = (table.pair(int(row)) for table, rows in places for row in rows)
    return PackedPairs(_with_bar(packer.pack_all(pairs), total, shows_progress=shows_progress))


def _with_bar(packed: Iterator[PackedPair], total: int, *, shows_progress: bool) -> Iterator[PackedPair]:
    yield from tqdm(
        packed, total=total, unit="pair", desc="packing", leave=False, disable=None if shows_progress else True
    )
