"""The teacher stage as one function: what `build-teacher-cache` calls, and programs may."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from logitbank.configs import Config, ConfigSource, config_of
from logitbank.errors import ConfigError
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.models.workers import Worker
from logitbank.teacher_cache.build import build_store
from logitbank.teacher_cache.preference.command import run_preference
from logitbank.teacher_cache.preference.request import read_request
from logitbank.teacher_cache.scoring import Tally


def build(
    config: ConfigSource,
    *,
    store: str | os.PathLike[str],
    views: Sequence[str] | None = None,
    split: str = "train",
    answers: str | os.PathLike[str] | None = None,
    folds: Sequence[int] | None = None,
    checkpoint: Path | None = None,
    logits: str | None = None,
    worker: Worker | tuple[int, int] | None = None,
    dry_run: bool = False,
) -> Tally | None:
    """Run a teacher over the examples of a split and keep its logits; finished parts are skipped.

    Args:
        config: a configuration, a file or shipped name, a mapping of keys, or a list of these and of `key=value`.
        store: directory or URL of the store.
        views: which to fill; None for `fewshot` and `zeroshot`. For comparisons (`tasks=[preference]`) one teacher's
            name, or `none` for rows and folds only.
        split: split of the examples: `train`, or `validation` or `test` for evaluation.
        answers: a file of answers that a model wrote (docs/on-policy.md); students
            learn from these instead of the examples' own answers. `logitbank.sample_answers` writes one.
        folds: for comparisons: score these; None for all that the teacher's training left out.
        checkpoint: for comparisons: the trained teacher.
        logits: for comparisons: import raw logits from these `.npy` files.
        worker: (i, n) if n processes fill the store together.
        dry_run: for comparisons: print what would be done. `teacher_cache.build.estimate_store` has it for other tasks.

    Returns:
        What was done; None for comparisons.

    Raises:
        ConfigError, TaskError: anything that the user must fix, before a model is loaded.
        StoreError: a store that cannot be written, or was started with different settings.
        MemoryExhaustedError: even single sequences do not fit in memory.
    """
    settings = config_of(config)
    url = os.fspath(store)
    own = Worker(*worker, "worker") if isinstance(worker, tuple) else worker
    if settings.is_preference:
        if answers is not None:
            raise ConfigError("--answers: comparisons have labels and no answers; leave it out")
        request = read_request(settings, views=views, folds=folds, checkpoint=checkpoint, logits=logits, split=split)
        run_preference(settings, url, request, worker=own, dry_run=dry_run)
        return None
    refuse_options_of_comparisons(settings, folds=folds, checkpoint=checkpoint, logits=logits)
    file = None if answers is None else os.fspath(answers)
    return build_store(settings, url, tuple(views or DEFAULT_VIEWS), split=split, answers=file, worker=own)


def refuse_options_of_comparisons(
    config: Config, *, folds: Sequence[int] | None, checkpoint: Path | None, logits: str | None
) -> None:
    """Raise `ConfigError` for what only comparisons have."""
    for option, value in (("fold", folds), ("checkpoint", checkpoint), ("logits", logits)):
        if value is not None:
            raise ConfigError(f"--{option}: expected tasks=[preference], got {', '.join(config.tasks)}; leave it out")
