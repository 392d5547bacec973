"""Prompts stay together: in one fold, and on one side of training and validation.

Shape letters: N rows of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import counted


class Keyed(NamedTuple):
    """Rows by name, and what their prompts are.

    Attributes:
        example_id: (N,) names.
        prompt_key: (N,) uint64.
    """

    example_id: Sequence[str]
    prompt_key: NDArray[np.uint64]


def prompt_problems(train: Keyed, fold: NDArray[np.int8], validation: Keyed, external: Keyed) -> Iterator[str]:
    """What is wrong, a line each.

    Args:
        train: the training rows.
        fold: (N,) the fold of each of them.
        validation: held-out rows.
        external: rows from elsewhere.
    """
    order = np.lexsort((fold, train.prompt_key))
    key, of = train.prompt_key[order], fold[order]
    for place in np.flatnonzero((key[1:] == key[:-1]) & (of[1:] != of[:-1]))[:1]:
        here, there = (train.example_id[int(order[place + i])] for i in (0, 1))
        yield f"train: {here} (fold {of[place]}) and {there} (fold {of[place + 1]}) have the same prompt"
    for name, rows in (("train", train), ("external", external)):
        shared = np.isin(rows.prompt_key, validation.prompt_key)
        for row in np.flatnonzero(shared)[:1]:
            number = counted(int(shared.sum()), "row")
            yield f"{name}: {number} with prompts of validation (first {rows.example_id[int(row)]})"
