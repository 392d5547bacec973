"""The rows of a label store, and what it would take to read them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from logitbank.configs import Config, config_to_dict
from logitbank.models.workers import Worker
from logitbank.preference import Pair
from logitbank.storage import LabelSpec, LabelStoreBuilder, open_label_builder
from logitbank.tasks.preference import PairPacker, Prepared

SHARD_ROWS = 1024  # what is lost of a fold when a teacher is stopped


def open_rows(
    url: str, config: Config, prepared: Prepared, worker: Worker | None = None
) -> AbstractContextManager[LabelStoreBuilder]:
    """Write rows and folds, or open the store that has them.

    Raises:
        StoreError: the store has other rows, or cannot be written.
    """
    return open_label_builder(
        url,
        _spec(config),
        prepared.train,
        prepared.folds,
        prepared.validation,
        prepared.parts,
        prepared.external,
        worker=worker.index if worker else None,
        workers=worker.count if worker else None,
    )


def _spec(config: Config) -> LabelSpec:
    preference = config.preference
    identity: dict[str, Any] = {"dedup": preference.dedup, "selection": preference.selection}
    if preference.validation is None:
        identity["holdout"] = preference.holdout
    return LabelSpec(
        folds=preference.folds,
        seed=config.seed,
        identity=identity,
        config=config_to_dict(config),
        shard_rows=SHARD_ROWS,
    )


@dataclass(frozen=True)
class Packing:
    """Comparisons as tokens.

    Attributes:
        comparisons: how many.
        tokens: of all of them, as a model reads them.
        longest: tokens of one.
        truncated: comparisons of which something was left out.
        left_out: tokens that were.
        seconds: that packing took.
    """

    comparisons: int
    tokens: int
    longest: int
    truncated: int
    left_out: int
    seconds: float


def measure_packing(packer: PairPacker, pairs: Iterable[Pair]) -> Packing:
    """Pack comparisons and count."""
    comparisons = tokens = longest = truncated = left_out = 0
    started = time.perf_counter()
    for packed in packer.pack_all(pairs):
        comparisons += 1
        tokens += len(packed.ids)
        longest = max(longest, len(packed.ids))
        truncated += packed.cut > 0
        left_out += packed.cut
    return Packing(comparisons, tokens, longest, truncated, left_out, time.perf_counter() - started)
