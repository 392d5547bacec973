"""Checking a whole label store: every byte, what every number means, and that every view is out of fold.

Shape letters: N training rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError, counted
from logitbank.preference import Pair
from logitbank.storage.groups import check_manifests, read_all
from logitbank.storage.label_store.pairs import TARGET_ERROR, PairTable
from logitbank.storage.label_store.prompts import Keyed, prompt_problems
from logitbank.storage.label_store.reader import LabelStore
from logitbank.storage.label_store.spec import ScoredShard
from logitbank.storage.label_store.writer import FOLDS_KEY, folds_document
from logitbank.storage.objects import BASE_KEY, fold_key, read_manifest, read_object, shard_key


def verify_labels(url: str, advance: Callable[[str], object] = lambda what: None) -> list[str]:
    """Every problem found in a label store, a line each; none for a sound one.

    A fold that nobody started to score is not a fault; one that was started and not finished is.

    Args:
        url: the store.
        advance: called with the name of each part as it is done.

    Raises:
        StoreError: there is no store at all, or a teacher store.
    """
    problems = check_manifests(url, advance)
    if problems:
        return problems
    store = LabelStore.open(url)
    tables = {"train": store.train, "validation": store.validation, "external": store.external}
    for name, table in tables.items():
        problems += _check_table(name, table)
    problems += _check_folds(store)
    train, validation, external = (Keyed(table.example_id, table.prompt_key) for table in tables.values())
    problems += prompt_problems(train, store.train.fold, validation, external)
    for view in store.views:
        for shard in store.scorers(view):
            problems += _check_shard(store, view, shard)
            advance(f"{view} {shard.shard}")
        problems += _check_progress(store, view)
    return problems


def _check_table(name: str, table: PairTable) -> Iterator[str]:
    """What is wrong with targets, and with keys that do not belong to their texts."""
    off = np.abs(table.target.sum(axis=1, dtype=np.float64) - 1) > TARGET_ERROR
    for row in np.flatnonzero(off | ~np.isfinite(table.target).all(axis=1) | (table.target < 0).any(axis=1))[:1]:
        yield f"{name} {table.example_id[row]}: expected probabilities whose sum is 1, got {table.target[row].tolist()}"
    for row in range(len(table)):
        try:
            pair = table.pair(row)
        except (ValueError, TypeError) as error:
            yield f"{name} {table.example_id[row]}: its text cannot be read: {error}"
            continue
        yield from _check_text(name, table, row, pair)


def _check_text(name: str, table: PairTable, row: int, pair: Pair) -> Iterator[str]:
    if not len(pair.prompt) == len(pair.response_a) == len(pair.response_b) > 0:
        yield f"{name} {pair.example_id}: prompt and answers have different numbers of turns"
    if (pair.prompt_key, pair.pair_key) != (int(table.prompt_key[row]), int(table.pair_key[row])):
        yield f"{name} {pair.example_id}: its keys are not those of its text"


def _check_folds(store: LabelStore) -> Iterator[str]:
    """Whether `folds.json` and the places of the rows are those that the folds say."""
    entries, _ = read_manifest(store.objects, BASE_KEY)
    found = json.loads(read_object(store.objects, FOLDS_KEY, entries[FOLDS_KEY]))
    if found != json.loads(folds_document(store.train.example_id, store.train.fold)):
        yield f"{FOLDS_KEY}: its folds are not those of the training rows"
    if read_all(store.array("train/row")).tolist() != store.plan.places().tolist():
        yield "train: rows do not lie where their folds begin"


def _check_progress(store: LabelStore, view: str) -> Iterator[str]:
    """Folds that were started and not finished."""
    for fold in range(store.info.folds):
        shards, missing = store.plan.shards_of(fold), store.missing_shards(view, fold)
        if missing and (len(missing) < len(shards) or store.objects.exists(fold_key(view, fold))):
            yield f"view {view}, fold {fold}: {len(missing)} of {counted(len(shards), 'shard')} not written yet"


def _check_shard(store: LabelStore, view: str, shard: ScoredShard) -> Iterator[str]:
    """Whether a shard holds what its manifest says, from a teacher that had not seen its prompts."""
    where = f"view {view}, shard {shard.shard}, fold {shard.fold}"
    rows = store.plan.rows_of(shard.shard)
    if shard.rows != rows or set(store.train.fold[rows.start : rows.stop].tolist()) != {shard.fold}:
        yield f"{where}: its rows are {rows.start} to {rows.stop - 1}, of fold {store.plan.fold[shard.shard]}"
        return
    try:
        _, claim = read_manifest(store.objects, fold_key(view, shard.fold))
        seen = store.seen_rows(view, shard.fold)
        logits = store.read_shard(view, shard.shard)
    except (FileNotFoundError, StoreError) as error:
        yield f"{where}: {error}"
        return
    _, said = read_manifest(store.objects, shard_key(view, shard.shard))
    if {**said["scorer"], "model": None} != {**claim["scorer"], "model": None} or shard.proven != (seen is not None):
        yield f"{where}: scored by {shard.model}, which is not the teacher that {fold_key(view, shard.fold)} names"
    if not np.isfinite(logits).all():
        yield f"{where}: logits that are not finite"
    if shard.held_out_fold not in (None, shard.fold):
        yield f"{where}: {shard.model} was trained without fold {shard.held_out_fold}, not this one"
    if seen is not None:
        if (shard.trained_rows, shard.selected_rows) != (seen.trained.sum(), seen.selected.sum()):
            yield f"{where}: {shard.model} saw other rows than its manifest counts"
        yield from _leaks(store, where, f"{shard.model} trained on", seen.trained, rows)
        yield from _leaks(store, where, f"{shard.model} was selected on", seen.selected, rows)


def _leaks(store: LabelStore, where: str, who: str, mask: NDArray[np.bool_], rows: range) -> Iterator[str]:
    leaked = rows.start + np.flatnonzero(mask[rows.start : rows.stop])
    if len(leaked):
        first = store.train.example_id[int(leaked[0])]
        yield f"{where}: not out of fold: {who} the prompts of {counted(len(leaked), 'row')} of it (first {first})"
