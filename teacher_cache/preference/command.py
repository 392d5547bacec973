"""`build-teacher-cache` where the task is `preference`: what it does, and what it says of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from logitbank.configs import Config, data_settings
from logitbank.errors import counted
from logitbank.models.devices import default_device
from logitbank.models.huggingface import load_tokenizer
from logitbank.models.pair_head import most_tokens
from logitbank.models.workers import Worker
from logitbank.storage import LabelStore
from logitbank.storage.objects import open_objects, open_writable
from logitbank.tasks.preference import PairPacker, Prepared, prepare, read_training_file
from logitbank.teacher_cache.preference.imported import FoldLogits, read_logits, write_logits
from logitbank.teacher_cache.preference.request import Request
from logitbank.teacher_cache.preference.rows import Packing, measure_packing, open_rows
from logitbank.teacher_cache.preference.scoring import (
    PairTally,
    folds_to_score,
    refuse_other_weights,
    refuse_seen,
    score_folds,
)
from logitbank.teacher_cache.preference.teachers import PairTeacher, find_teacher


def run_preference(
    config: Config, url: str, request: Request, *, worker: Worker | None = None, dry_run: bool = False
) -> None:
    """Write rows and folds, score folds, or import their logits; print what was done.

    Args:
        config: of the build.
        url: directory or fsspec URL of the store.
        request: what to do.
        worker: which of several processes that fill one store this is; None for one on its own.
        dry_run: print what would be done; write nothing and load no weights.

    Raises:
        ConfigError, TaskError: anything that the user can fix, before anything is written.
        StoreError: a store of other rows, or one that cannot be written.
    """
    if dry_run:
        open_objects(url)  # an URL that no file system knows is an error here too
    else:
        open_writable(url)
    if request.view is None:
        _rows(config, url, worker, dry_run=dry_run)
    elif request.logits is not None:
        _import(config, url, request.view, request, worker, dry_run=dry_run)
    else:
        _score(config, url, request.view, request, worker, dry_run=dry_run)


def _rows(config: Config, url: str, worker: Worker | None, *, dry_run: bool) -> None:
    prepared = prepare(data_settings(config))
    _print_report(prepared)
    if dry_run:
        longest = most_tokens(config)
        packer = PairPacker(
            load_tokenizer(config.model), max_tokens=longest, keep_turns=config.data.keep_turns, head=config.head
        )
        _print_packing(config.model.name, packer, measure_packing(packer, (*prepared.train, *prepared.external)))
        return
    with open_rows(url, config, prepared, worker):
        pass
    _print_store(url)


def _import(config: Config, url: str, view: str, request: Request, worker: Worker | None, *, dry_run: bool) -> None:
    assert request.logits is not None
    data = data_settings(config)
    prepared = prepare(data)
    logits = read_logits(request.logits, request.folds, prepared, read_training_file(data))
    refuse_other_weights(url, view, {fold: (str(found.file), found.sha256) for fold, found in logits.items()})
    if dry_run:
        _print_imported(sum(len(found.logits_NC) for found in logits.values()), logits, "would be imported")
        return
    with open_rows(url, config, prepared, worker) as builder:
        written = write_logits(builder, view, logits)
    _print_store(url)
    _print_imported(written, logits, "imported")


def _score(config: Config, url: str, view: str, request: Request, worker: Worker | None, *, dry_run: bool) -> None:
    device = default_device()
    teacher = find_teacher(config, request.checkpoint, device)
    folds = folds_to_score(teacher, request.folds, config.preference.folds)
    packer = teacher.packer
    prepared = prepare(data_settings(config))
    refuse_seen(teacher.name, teacher.seen, prepared, folds)
    refuse_other_weights(url, view, dict.fromkeys(folds, (teacher.name, teacher.weights)))
    if dry_run:
        asked = (pair for pair, fold in zip(prepared.train, prepared.folds, strict=True) if fold in folds)
        _print_packing(teacher.name, packer, measure_packing(packer, asked))
        return
    with open_rows(url, config, prepared, worker) as builder:
        tally = score_folds(builder, prepared, view, teacher, folds, device=device, worker=worker)
    _print_store(url)
    _print_scored(teacher, tally)


def _print_report(prepared: Prepared) -> None:
    print("\n".join(prepared.report.lines()))


def _print_packing(model: str, packer: PairPacker, found: Packing) -> None:
    speed = f", {found.tokens / found.seconds:,.0f} tokens/s" if found.comparisons else ""
    print(
        f"packed for {model}, at most {packer.max_tokens:,} tokens: {counted(found.comparisons, 'comparison')}, "
        f"{found.tokens:,} tokens, the longest {found.longest:,}; {found.truncated:,} truncated by "
        f"{found.left_out:,} tokens{speed}"
    )


def _print_store(url: str) -> None:
    store = LabelStore.open(url)
    counts, folds = store.info.counts, range(store.info.folds)
    views = [f"{view} {_state(folds, set(_complete(store, view)))}" for view in store.views]
    print(
        f"{shlex.quote(url)}: {counted(counts['train'], 'comparison')} in {len(folds)} folds, "
        f"{counts['validation']:,} for validation, {counts['external']:,} external; "
        f"{'; '.join(views) or 'no teacher yet'}\n"
        f"fingerprint {store.info.short_fingerprint}; look inside: inspect-cache --store {shlex.quote(url)}"
    )


def _complete(store: LabelStore, view: str) -> Iterable[int]:
    return (fold for fold in range(store.info.folds) if not store.missing_shards(view, fold))


def _state(folds: Iterable[int], complete: set[int]) -> str:
    lacking = [fold for fold in folds if fold not in complete]
    if not lacking:
        return "complete"
    return f"lacks {'fold' if len(lacking) == 1 else 'folds'} {', '.join(map(str, lacking))}"


def _print_scored(teacher: PairTeacher, tally: PairTally) -> None:
    if not tally.comparisons:
        print("teacher: nothing left to do")
        return
    print(
        f"teacher: {teacher.name} ({teacher.settings.head}), {counted(tally.comparisons, 'comparison')}, "
        f"{tally.tokens:,} tokens, {tally.tokens / tally.seconds:,.0f} tokens/s, {tally.truncated:,} truncated"
    )
    if teacher.seen is None:
        print("it is not recorded which prompts this model was trained on, so the view cannot be proven out of fold")


def _print_imported(rows: int, logits: dict[int, FoldLogits], done: str) -> None:
    files = dict.fromkeys(str(found.file) for found in logits.values())
    print(
        f"{done}: logits of {counted(rows, 'comparison')} from {', '.join(files)}; whether they are out of fold is "
        "not recorded"
    )
