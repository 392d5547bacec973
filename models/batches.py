"""Batches of sequences of similar length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What a forward pass costs beside its tokens, in tokens: fewer batches against less padding; see docs/benchmarks.md.
BATCH_COST = 48


def batches_by_length(lengths: Sequence[int], token_budget: int, *, batch_cost: float = BATCH_COST) -> list[list[int]]:
    """Group sequences so that each batch, padded to its longest, holds at most `token_budget` tokens.

    Sorted by length and cut where padding and the fixed cost of a batch together are least, a shortest
    path over the cuts; a sequence longer than the budget goes alone.

    Args:
        lengths: tokens of each sequence.
        token_budget: most tokens of a batch, padding included.
        batch_cost: what a batch costs beside its tokens, in tokens.

    Returns:
        Lists of positions in `lengths`, longest first, so that what does not fit in memory fails at once;
        each position once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cost = np.full(len(order) + 1, np.inf)
    cost[0] = 0
    start_of = np.zeros(len(order) + 1, dtype=np.int64)
    for start, position in enumerate(order):
        most = min(max(1, token_budget // lengths[position]), len(order) - start)
        stops = slice(start + 1, start + most + 1)
        padded = cost[start] + np.arange(1, most + 1) * float(lengths[position]) + batch_cost
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
