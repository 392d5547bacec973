"""The student stage as one function: what `train-student` calls, and programs may."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from logitbank.configs import ConfigSource, config_of
from logitbank.errors import ConfigError
from logitbank.experiment import NO_VIEW, view_of_argument
from logitbank.preference import TASK as PREFERENCE
from logitbank.student_train.classifier.train import train_classifier
from logitbank.student_train.records import Run
from logitbank.student_train.train import train as train_tokens


def train(
    config: ConfigSource,
    *,
    store: str | os.PathLike[str],
    view: str | Sequence[str] | None,
    output: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
    held_out_fold: int | None = None,
    rows: str | None = None,
) -> Path:
    """Train a student from a store, or resume its training; every process of an `accelerate launch` calls this.

    Args:
        config: a configuration, a file or shipped name, a mapping of keys, or a list of these and of `key=value`.
        store: directory or URL of the teacher or label store.
        view: view of the teacher to learn from; None or `none` for cross-entropy alone. Several views of a label store
            are averaged.
        output: directory of the checkpoints; an unfinished run of the same settings in it is resumed.
        results: directory of the result rows; None for `OUTPUT/results`.
        held_out_fold: for comparisons: leave out the rows of this fold.
        rows: for comparisons: learn from those of the training split (`train`), of external files (`external`) or
            `all`.

    Returns:
        The directory of the final checkpoint.

    Raises:
        ConfigError, StoreError: anything that the user must fix, before anything is written.
        TrainingError: the loss is no longer finite.
        OutputError: a checkpoint that cannot be written.
    """
    settings = config_of(config, any_task=True)  # the store says which tasks it has
    views = [NO_VIEW] if view is None else [view] if isinstance(view, str) else list(view)
    if len(views) > 1 and NO_VIEW in views:
        raise ConfigError(f"--view: {NO_VIEW} is cross-entropy only; expected no other view, got {', '.join(views)}")
    if not settings.is_preference:
        _refuse_options_of_comparisons(views, held_out_fold, rows)
    run = Run(
        config=settings,
        store_url=os.fspath(store),
        view=view_of_argument("+".join(views)),
        output=Path(output),
        results=Path(output) / "results" if results is None else Path(results),
        held_out_fold=held_out_fold,
        rows=(rows or "all") if settings.is_preference else None,
    )
    return (train_classifier if settings.is_preference else train_tokens)(run)


def _refuse_options_of_comparisons(views: Sequence[str], held_out_fold: int | None, rows: str | None) -> None:
    """Raise `ConfigError` for options that only comparisons have."""
    if len(views) > 1:
        raise ConfigError(
            f"--view: only views of a label store (tasks=[{PREFERENCE}]) can be averaged; expected one view, got "
            f"{', '.join(views)}"
        )
    for option, given in (("--held-out-fold", held_out_fold), ("--rows", rows)):
        if given is not None:
            raise ConfigError(f"{option}: only applies to label stores (tasks=[{PREFERENCE}]); leave it out")
