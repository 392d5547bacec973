"""What inspect-cache prints of a label store: rows, folds and classes, who scored them, and single comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError, counted
from logitbank.preference import CLASSES, Pair
from logitbank.storage import LabelStore, PairTable
from logitbank.storage.results import Catalogue
from logitbank.tasks.preference import PARTS
from logitbank.teacher_cache.tables import print_table

WEIGHTS_SHOWN = 8  # digits of a hash
SCORES_SQL = """
    SELECT view, fold, count(*) AS rows, avg(log_loss) AS log_loss, avg(correct) AS accuracy
    FROM oof GROUP BY view, fold
"""


def label_facts(store: LabelStore) -> dict[str, Any]:
    """What `inspect-cache --format json` prints of a label store."""
    info, sizes = store.info, store.objects.sizes()
    scores = {(row.pop("view"), row.pop("fold")): row for row in Catalogue([], [store.url]).rows(SCORES_SQL)}
    parts = np.bincount(store.validation.part, minlength=len(PARTS)).tolist() if len(store.validation) else [0, 0, 0]
    return {
        "store": store.url,
        "fingerprint": info.fingerprint,
        "bytes": sum(sizes.values()),
        "train": _rows(store.train),
        "validation": {**_rows(store.validation), "parts": dict(zip(PARTS, parts, strict=True))},
        "external": _rows(store.external),
        "folds": [_rows(store.train, store.train.fold == fold) for fold in range(info.folds)],
        "views": {view: _view_facts(store, view, sizes, scores) for view in store.views},
    }


def _rows(table: PairTable, chosen: NDArray[np.bool_] | slice = slice(None)) -> dict[str, Any]:
    """Rows and prompts, and the mean of the targets."""
    target = table.target[chosen].astype(np.float64)
    shares = target.mean(axis=0).tolist() if len(target) else [None] * len(CLASSES)
    prompts = len(np.unique(table.prompt_key[chosen]))
    return {"rows": len(target), "prompts": prompts, "classes": dict(zip(CLASSES, shares, strict=True))}


def _view_facts(
    store: LabelStore, view: str, sizes: Mapping[str, int], scores: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    size = sum(length for key, length in sizes.items() if key.startswith((f"teachers/{view}/", f"manifest/{view}/")))
    by_fold = {shard.fold: shard for shard in store.scorers(view)}
    folds = [
        {
            "fold": fold,
            "missing_shards": len(store.missing_shards(view, fold)),
            "teacher": shard.model,
            "weights": shard.weights,
            "held_out_fold": shard.held_out_fold,
            "proven": shard.proven,
            "trained_rows": shard.trained_rows,
            "selected_rows": shard.selected_rows,
            **scores[view, fold],
        }
        for fold, shard in sorted(by_fold.items())
    ]
    scored = sum(about["rows"] for about in folds)
    return {
        "complete": not store.missing_shards(view),
        "missing_folds": [fold for fold in range(store.info.folds) if store.missing_shards(view, fold)],
        "bytes": size,
        "bytes_per_row": size / scored if scored else None,
        "fingerprint": store.view_fingerprint(view, [about["fold"] for about in folds if not about["missing_shards"]]),
        **store.view_attributes(view)["details"],
        "folds": folds,
    }


def show_labels(store: LabelStore, output: str) -> None:
    """What a label store holds, as text or JSON."""
    facts = label_facts(store)
    if output == "json":
        print(json.dumps(facts, indent=2))
        return
    parts = ", ".join(f"{count:,} {part}" for part, count in facts["validation"]["parts"].items())
    print(
        f"{facts['store']}: {counted(facts['train']['rows'], 'training row')}, "
        f"{counted(facts['train']['prompts'], 'prompt')}, {counted(len(facts['folds']), 'fold')}\n"
        f"{counted(facts['validation']['rows'], 'validation row')} ({parts}), "
        f"{counted(facts['external']['rows'], 'external row')}\n"
        f"{facts['bytes'] / 1e6:,.1f} MB\nfingerprint {facts['fingerprint']}"
    )
    for view, about in facts["views"].items():
        lacking = ", ".join(map(str, about["missing_folds"]))
        state = "complete" if about["complete"] else f"folds to be scored: {lacking}"
        cost = f", {about['bytes_per_row']:,.0f} bytes per row" if about["bytes_per_row"] is not None else ""
        print(f"view {view}: {state}{cost}\n  fingerprint {about['fingerprint']}")
    print()
    groups = {f"fold {fold}": of for fold, of in enumerate(facts["folds"])}
    groups |= {name: facts[name] for name in ("train", "validation", "external")}
    print_table(["rows of", "rows", "prompts", *CLASSES], [_row(name, of) for name, of in groups.items()], totals=3)
    if any(about["folds"] for about in facts["views"].values()):
        print()
        _print_teachers(facts["views"])


def _row(name: str, of: Mapping[str, Any]) -> list[str]:
    shares = ["–" if share is None else f"{share:.1%}" for share in of["classes"].values()]
    return [name, f"{of['rows']:,}", f"{of['prompts']:,}", *shares]


def _print_teachers(views: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per view and fold that is scored: by whom, whether out of fold, and how well."""
    rows = []
    for view, about in views.items():
        for fold in about["folds"]:
            seen = "not proven"
            if fold["proven"]:
                seen = f"{fold['trained_rows']:,} learned, {fold['selected_rows']:,} for selection"
            where = [view, str(fold["fold"]), fold["teacher"], fold["weights"][:WEIGHTS_SHOWN], seen]
            rows.append([*where, f"{fold['rows']:,}", f"{fold['log_loss']:.4f}", f"{fold['accuracy']:.1%}"])
    header = ["view", "fold", "teacher", "weights", "saw of the training rows", "rows", "log loss", "accuracy"]
    print_table(header, rows, left=5)


def unproven_folds(store: LabelStore) -> dict[str, list[int]]:
    """By view, the folds without a record of what their teacher had seen."""
    found = {view: {shard.fold for shard in store.scorers(view) if not shard.proven} for view in store.views}
    return {view: sorted(folds) for view, folds in found.items() if folds}


def show_pair(store: LabelStore, example_id: str, output: str) -> None:
    """One comparison with its label and what each view says of it, as text or JSON.

    Raises:
        StoreError: no such example.
    """
    group, table, place = _find(store, example_id)
    pair, label = table.pair(place), dict(zip(CLASSES, table.target[place].tolist(), strict=True))
    views: dict[str, dict[str, float]] = {}
    if group == "train":
        logits = {view: store.logits(view)[place].astype(np.float64) for view in store.views}
        views = {view: _probabilities(row) for view, row in logits.items() if np.isfinite(row).all()}
    about = {
        "example_id": pair.example_id,
        "group": group,
        "fold": int(table.fold[place]) if group == "train" else None,
        "part": PARTS[table.part[place]] if group == "validation" else None,
        "prompt_key": f"{int(table.prompt_key[place]):016x}",
        "prompt": pair.prompt,
        "response_a": pair.response_a,
        "response_b": pair.response_b,
        "target": label,
        "views": views,
    }
    if output == "json":
        print(json.dumps(about, indent=2, ensure_ascii=True))
        return
    where = next((f", {name} {about[name]}" for name in ("fold", "part") if about[name] is not None), "")
    print(f"{pair.example_id}: {group}{where}, prompt {about['prompt_key']}")
    _print_turns(pair)
    print()
    shown = {"label": label, **views}
    rows = [[name, *(f"{p:.4f}" for p in probabilities.values())] for name, probabilities in shown.items()]
    print_table(["", *CLASSES], rows)
    for view in store.views if group == "train" else ():
        if view not in views:
            print(f"view {view}: not scored yet")


def _find(store: LabelStore, example_id: str) -> tuple[str, PairTable, int]:
    """The group, table and position of an example."""
    for group, table in (("train", store.train), ("validation", store.validation), ("external", store.external)):
        place = table.index_of(example_id)
        if place is not None:
            return group, table, place
    some = ", ".join(store.train.example_id[:3])
    raise StoreError(f"example {example_id!r}: not in the store; its ids look like {some}")


def _probabilities(logits: NDArray[np.float64]) -> dict[str, float]:
    odds = np.exp(logits - logits.max())
    return dict(zip(CLASSES, (odds / odds.sum()).tolist(), strict=True))


def _print_turns(pair: Pair) -> None:
    """The turns one after the other: prompt, answer A, answer B."""
    for number, turns in enumerate(zip(pair.prompt, pair.response_a, pair.response_b, strict=True), start=1):
        turn = f" (turn {number} of {len(pair.prompt)})" if len(pair.prompt) > 1 else ""
        for name, text in zip(("prompt", "answer A", "answer B"), turns, strict=True):
            print(f"\n{name}{turn}:\n{text.encode(errors='replace').decode()}")
