"""What must fit together before a student of comparisons is trained: store, views, rows, model, options."""

from __future__ import annotations

import shlex

import numpy as np
from accelerate.utils import parse_flag_from_env
from numpy.typing import NDArray

from logitbank.configs import Config, ConfigError
from logitbank.models.huggingface import context_tokens
from logitbank.storage import LabelStore
from logitbank.student_train.records import Run

SELECTION = 0  # the part of the validation rows that chooses among checkpoints


def views_of(run: Run) -> tuple[str, ...]:
    """The views that `--view` named; none for cross-entropy alone."""
    return () if run.view is None else tuple(run.view.split("+"))


def check_options(run: Run) -> None:
    """Refuse options that have no meaning for, or with, comparisons.

    Raises:
        ConfigError: says which.
    """
    views, weights = views_of(run), run.config.distillation.view_weights
    if run.rows == "external" and run.held_out_fold is not None:
        raise ConfigError(
            "--held-out-fold: external rows do not belong to a fold; leave it out, or use --rows train or all"
        )
    if run.rows == "external" and views:
        raise ConfigError(
            f"--view: expected none with --rows external, because no teacher scored these rows; got {run.view}"
        )
    if len(set(views)) != len(views):
        raise ConfigError(f"--view: expected each at most once, got {', '.join(views)}")
    for view in weights:
        if view not in views:
            raise ConfigError(
                f"distillation.view_weights.{view}: expected one of the views asked for ({', '.join(views) or 'none'})"
            )
    if run.config.training.packing:
        raise ConfigError("training.packing: expected false for comparisons, which are padded, got true")
    for flag, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")):
        if parse_flag_from_env(flag):
            raise ConfigError(
                f"distributed_type: {name} is not supported for comparisons; use several processes (MULTI_GPU), with "
                "lora.load_in_4bit=true if the model does not fit"
            )


def check_store_fits(store: LabelStore, run: Run) -> None:
    """Refuse a store that lacks what this run asks for.

    Raises:
        ConfigError: a fold that it does not have, no rows, or no selection part to evaluate on.
        StoreError: a view that it lacks, or one whose folds are not all scored.
    """
    fold, folds, place = run.held_out_fold, store.info.folds, shlex.quote(store.url)
    if fold is not None and not 0 <= fold < folds:
        raise ConfigError(
            f"--held-out-fold: expected one of the {folds} folds of {place}, 0 to {folds - 1}, got {fold}"
        )
    for view in views_of(run):
        store.require_view(view, folds_learned(store, run))
    if run.rows == "external" and not len(store.external):
        raise ConfigError(f"--rows: the store {place} has no external rows; name files in preference.external")
    if run.config.training.eval_steps is not None and not len(selection_rows(store)):
        raise ConfigError(
            f"training.eval_steps: the store {place} has no validation rows for selection; set "
            "preference.validation or preference.holdout, and preference.selection, and build it again"
        )


def check_length(config: Config, max_tokens: int) -> None:
    """Refuse pairs that are longer than the model reads.

    Raises:
        ConfigError: says both lengths.
    """
    most = context_tokens(config.model)
    if most is not None and max_tokens > most:
        raise ConfigError(
            f"data.max_student_tokens: {config.model.name} reads at most {most:,} tokens, got {max_tokens:,}; "
            f"set data.max_student_tokens={most}"
        )


def folds_learned(store: LabelStore, run: Run) -> list[int]:
    """The folds whose rows a run learns from."""
    return [] if run.rows == "external" else [fold for fold in range(store.info.folds) if fold != run.held_out_fold]


def selection_rows(store: LabelStore) -> NDArray[np.int64]:
    """(M,) positions in the store's validation rows."""
    return np.flatnonzero(store.validation.part == SELECTION)
