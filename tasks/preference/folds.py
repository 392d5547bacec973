"""Folds of the training comparisons: every prompt in one of them, every class in equal shares."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError, counted
from logitbank.preference import TASK, Pair, prompt_keys


def classes_of(pairs: Sequence[Pair]) -> NDArray[np.int8]:
    """(N,) int8, the likeliest class of each comparison with a target, the first of equals."""
    return np.array([int(np.argmax(pair.target or ())) for pair in pairs], dtype=np.int8)


def folds_of(pairs: Sequence[Pair], folds: int, seed: int) -> NDArray[np.int8]:
    """(N,) int8, the fold of each comparison, by scikit-learn's `StratifiedGroupKFold`.

    Args:
        pairs: with targets.
        folds: how many.
        seed: of the draw.

    Raises:
        TaskError: too few prompts, or rows of every class.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    prompts, classes = prompt_keys(pairs), classes_of(pairs)
    key, fewer = f"{TASK}.folds", "bring more rows, or ask for fewer folds"
    distinct = len(np.unique(prompts))
    if distinct < folds:
        raise TaskError(f"{key}: expected at most as many folds as prompts ({distinct:,}), got {folds}; {fewer}")
    if (most := np.bincount(classes).max()) < folds:
        raise TaskError(f"{key}: expected a class with at least {folds} rows, the largest class has {most}; {fewer}")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    found = np.empty(len(pairs), dtype=np.int8)
    order = np.argsort(prompts, kind="stable")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class with fewer rows than folds, which then lack it
        for fold, (_, held_out) in enumerate(splitter.split(order, classes[order], prompts[order])):
            found[order[held_out]] = fold
    sizes = np.bincount(found, minlength=folds)
    if not sizes.all():
        empty = int(np.flatnonzero(sizes == 0)[0])
        raise TaskError(f"{key}: fold {empty} of {folds} has none of the {counted(len(pairs), 'row')}; {fewer}")
    return found
