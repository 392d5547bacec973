"""What a teacher engine is: prompts and answers in, `TeacherRows` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitbank.storage import TeacherRows
from logitbank.teacher_cache.sampling import Sampling

# What a forward pass costs beside its tokens, in tokens: fewer batches against less padding; see docs/benchmarks.md.
BATCH_COST = 48


@dataclass(frozen=True)
class Sequenced:
    """One sequence to score.

    Attributes:
        prompt_ids: (P,) int32, ends where the answer begins.
        answer_ids: (A,) int32, A >= 1; its logits stand at positions P - 1 to P + A - 2.
        shared: leading prompt tokens, less than P, that other sequences begin with too: an engine may
            compute them once. Sequences of one batch have the same number and the same such tokens.
        sampling: what to draw besides, the same kind for all sequences of a batch; None for no draws.
    """

    prompt_ids: NDArray[np.int32]
    answer_ids: NDArray[np.int32]
    shared: int = 0
    sampling: Sampling | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids) - 1

    @property
    def own(self) -> int:
        """Tokens that are not shared."""
        return len(self) - self.shared

    @property
    def prefix(self) -> bytes:
        """The shared tokens, to group sequences by."""
        return self.prompt_ids[: self.shared].tobytes()


class TeacherEngine(Protocol):
    """A frozen language model that scores given answers."""

    @property
    def reuses_prefixes(self) -> bool:
        """Whether it makes use of `Sequenced.shared`."""

    @property
    def batches_itself(self) -> bool:
        """Whether it takes any number of sequences at once and forms batches of its own."""

    def identity(self) -> Mapping[str, Any]:
        """What of the model and engine changes numbers: weights, dtype, engine, versions."""

    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        """Teacher rows of all answer tokens, sequences in the given order."""


def batches_by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group sequences so that each batch, padded to its longest, holds at most `token_budget` tokens.

    Sorted by length and cut where padding and the fixed cost of a batch (`BATCH_COST`) together are
    least, a shortest path over the cuts; a sequence longer than the budget goes alone.

    Returns:
        Lists of positions in `lengths`, longest first; each position once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cost = np.full(len(order) + 1, np.inf)
    cost[0] = 0
    start_of = np.zeros(len(order) + 1, dtype=np.int64)
    for start, position in enumerate(order):
        most = min(max(1, token_budget // lengths[position]), len(order) - start)
        stops = slice(start + 1, start + most + 1)
        padded = cost[start] + np.arange(1, most + 1) * float(lengths[position]) + BATCH_COST
        better = padded < cost[stops]
        cost[stops][better] = padded[better]
        start_of[stops][better] = start
    batches: list[list[int]] = []
    stop = len(order)
    while stop:
        start = int(start_of[stop])
        batches.append(order[start:stop])
        stop = start
    return batches[::-1]
