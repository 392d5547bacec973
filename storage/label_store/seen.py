"""Which training rows of a store a scorer had seen the prompts of, as one object of two bitmasks.

Shape letters: N training rows of the store.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitbank.preference import SeenPrompts
from logitbank.storage.label_store.spec import SEEN_COUNTS, Scorer


class SeenRows(NamedTuple):
    """The rows whose prompts a scorer had seen.

    Attributes:
        trained: (N,) bool, it learned from the prompt.
        selected: (N,) bool, the prompt helped to choose its checkpoint.
    """

    trained: NDArray[np.bool_]
    selected: NDArray[np.bool_]

    @classmethod
    def of(cls, seen: SeenPrompts, prompt_key: NDArray[np.uint64]) -> SeenRows:
        """What was seen of rows with these keys, (N,) uint64."""
        return cls(np.isin(prompt_key, seen.trained), np.isin(prompt_key, seen.selected))

    def encoded(self) -> bytes:
        """Both masks one after the other, 2 × ⌈N / 8⌉ bytes; the first row is the lowest bit."""
        return b"".join(np.packbits(mask, bitorder="little").tobytes() for mask in self)

    @classmethod
    def decoded(cls, data: bytes, rows: int) -> SeenRows:
        """From what `encoded` gave for that many rows; ValueError for another length."""
        packed = np.frombuffer(data, np.uint8).reshape(2, -(-rows // 8))
        trained, selected = np.unpackbits(packed, axis=1, count=rows, bitorder="little").astype(np.bool_)
        return cls(trained, selected)


def said_of(scorer: Scorer, rows: SeenRows | None) -> dict[str, Any]:
    """What manifests say of a scorer."""
    counts: dict[str, int | None] = dict.fromkeys(SEEN_COUNTS)
    if scorer.seen is not None and rows is not None:
        numbers = (rows.trained.sum(), rows.selected.sum(), len(scorer.seen.trained), len(scorer.seen.selected))
        counts = {name: int(number) for name, number in zip(SEEN_COUNTS, numbers, strict=True)}
    return {"model": scorer.model, "weights": scorer.weights, "held_out_fold": scorer.fold, **counts}
