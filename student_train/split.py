"""How the examples of an optimizer step are split over ranks and micro-batches. The split changes no sum.

A micro-batch is so many sequences of similar length, padded to the longest; with packing it is one row of sequences
end to end, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from logitbank.configs import ConfigError
from logitbank.student_train.order import ExampleOrder, Positions


@dataclass(frozen=True)
class BatchPlan:
    """How global batches are split, and for which rank.

    Attributes:
        global_batch_size: examples of a step; a multiple of `micro_batch_size` × `world_size`, with packing of
            `world_size`.
        micro_batch_size: sequences of a micro-batch; without effect with packing.
        world_size: ranks.
        rank: this one.
        packed_tokens: most tokens of a packed row; None without packing.
    """

    global_batch_size: int
    micro_batch_size: int
    world_size: int
    rank: int
    packed_tokens: int | None = None

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one rank in one optimizer step, without packing."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def micro_batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """This rank's micro-batches of a step, each a list of positions in `lengths`; every rank has as many.

        Ranks that work at the same time work on similar numbers of tokens.

        Args:
            lengths: input tokens of each of the step's sequences.
        """
        if self.packed_tokens is not None:
            groups = pack(lengths, self.packed_tokens, multiple_of=self.world_size)
        else:
            order = longest_first(lengths)
            size = self.micro_batch_size
            groups = [order[start : start + size] for start in range(0, len(order), size)]
        return groups[self.rank :: self.world_size]


class Split:
    """The micro-batches of every optimizer step on one rank: a pure function of the step, counted from 0."""

    def __init__(self, order: ExampleOrder, plan: BatchPlan, lengths: Sequence[int] | np.ndarray) -> None:
        """Args: `lengths` are the tokens of every sequence of the example table, (N,).

        Raises:
            ConfigError: a sequence of the order that does not fit into a packed row.
        """
        self._order = order
        self._plan = plan
        self._inputs = np.asarray(lengths) - 1  # nothing is predicted from the last token
        self._latest: tuple[int, Positions, list[list[int]]] | None = None
        longest = int(self._inputs[np.concatenate(order.examples)].max())
        if plan.packed_tokens is not None and longest > plan.packed_tokens:
            raise ConfigError(
                f"training.packed_tokens: expected at least {longest}, the longest student sequence of the store, got "
                f"{plan.packed_tokens}; raise it, or build a store with a smaller data.max_student_tokens"
            )

    def examples(self, step: int) -> Positions:
        """All examples of a step, over all ranks."""
        return self._of(step)[0]

    def micro_batches(self, step: int) -> list[list[int]]:
        """This rank's micro-batches of a step, each a list of positions in the example table."""
        return self._of(step)[1]

    def _of(self, step: int) -> tuple[Positions, list[list[int]]]:
        """The latest step is kept: it is asked for once for each of its micro-batches."""
        if self._latest is None or self._latest[0] != step:
            whole = np.asarray(self._order.step(step, self._plan.global_batch_size))
            groups = self._plan.micro_batches(self._inputs[whole].tolist())
            self._latest = step, whole, [whole[group].tolist() for group in groups]
        return self._latest[1], self._latest[2]


class Indices:
    """`(step, number)` of every micro-batch of the steps start … stop−1 on this rank, in order."""

    def __init__(self, split: Split, start: int, stop: int) -> None:
        self._split = split
        self._steps = range(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in self._steps:
            for number in range(len(self._split.micro_batches(step))):
                yield step, number


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Positions in `lengths`, ties in their order."""
    return sorted(range(len(lengths)), key=lambda position: -lengths[position])


def pack(lengths: Sequence[int], tokens: int, *, multiple_of: int = 1) -> list[list[int]]:
    """Pack sequences into few rows of at most so many tokens, the fullest first; the same call gives the same rows.

    First-fit decreasing says how many rows there are, rounded up to a multiple of the ranks. Each sequence then goes
    into the emptiest of so many, longest first, so that rows are of similar size: ranks wait less, and the largest
    one is smaller. Where a row would overflow by that, the rows of first-fit decreasing are taken, the fullest of them
    cut in two until there are enough.

    Args:
        lengths: tokens of each sequence, none more than `tokens`; as many as `multiple_of` or a multiple of it.
        tokens: most of a row.
        multiple_of: what the number of rows must be a multiple of.

    Returns:
        Lists of positions in `lengths`, none empty; each position once.
    """
    order = longest_first(lengths)
    rows: list[list[int]] = []
    free: list[int] = []
    for position in order:
        fitting = next((row for row, room in enumerate(free) if room >= lengths[position]), None)
        if fitting is None:
            fitting = len(rows)
            rows.append([])
            free.append(tokens)
        rows[fitting].append(position)
        free[fitting] -= lengths[position]
    count = -(-len(rows) // multiple_of) * multiple_of
    level = _spread(order, lengths, count)
    if max(_tokens(row, lengths) for row in level) <= tokens:
        rows = level
    while len(rows) < count:
        fullest = max((row for row in rows if len(row) > 1), key=lambda row: _tokens(row, lengths))
        rows.remove(fullest)
        rows += _spread(fullest, lengths, 2)
    return sorted(rows, key=lambda row: -_tokens(row, lengths))


def _spread(order: Sequence[int], lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Sequences, longest first, each into the emptiest of so many rows."""
    spread: list[list[int]] = [[] for _ in range(rows)]
    loads = [0] * rows
    for position in order:
        emptiest = loads.index(min(loads))
        spread[emptiest].append(position)
        loads[emptiest] += lengths[position]
    return spread


def _tokens(row: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[position] for position in row)
