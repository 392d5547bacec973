"""Give sequences to an engine in batches that fit, and put its rows back in order."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from logitbank.errors import MemoryExhaustedError
from logitbank.models.batches import batches_by_length
from logitbank.storage import TeacherRows, concatenate
from logitbank.teacher_cache.engines.base import Sequenced, TeacherEngine

logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """What a build did.

    Attributes:
        tokens: of all sequences, context and answers.
        reused_tokens: those of them that stood in a shared prefix and were not computed again.
        padded_tokens: the others, padding included.
        answer_tokens: tokens that have teacher rows now.
        fallen_shards: shards scored with less than the configured token budget, because memory ran out.
        seconds: from the first batch to the last write.
    """

    tokens: int = 0
    reused_tokens: int = 0
    padded_tokens: int = 0
    answer_tokens: int = 0
    fallen_shards: int = 0
    seconds: float = 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the tokens run through the model that was padding."""
        return 1 - (self.tokens - self.reused_tokens) / self.padded_tokens if self.padded_tokens else 0.0

    def add(self, other: Tally) -> None:
        """Count another tally's tokens."""
        self.tokens += other.tokens
        self.reused_tokens += other.reused_tokens
        self.padded_tokens += other.padded_tokens
        self.answer_tokens += other.answer_tokens


def score(
    sequences: Sequence[Sequenced],
    engine: TeacherEngine,
    top_k: int,
    token_budget: int,
    tally: Tally,
    advance: Callable[[int], object] = lambda tokens: None,
) -> tuple[TeacherRows, int]:
    """Teacher rows of all sequences in the given order, run in batches of a shared prefix and similar length.

    Where memory runs out, all of them are run again with half the budget: the numbers are then a function
    of the sequences and of the budget that is returned, not of the place where memory ran out.

    Returns:
        The rows, and the token budget that they were computed with.

    Raises:
        MemoryExhaustedError: even single sequences do not fit in memory.
    """
    budget = token_budget
    while True:
        attempt = Tally()
        try:
            rows = _score_within(sequences, engine, top_k, budget, attempt, advance)
        except torch.OutOfMemoryError as error:
            advance(-attempt.tokens)
            if budget <= min(item.own for item in sequences):
                raise MemoryExhaustedError(
                    f"teacher.batch_tokens: a single sequence of up to {max(map(len, sequences))} tokens does not "
                    "fit in memory; lower data.max_teacher_tokens, or see teacher.device_map, "
                    "teacher.load_in_8bit and teacher.load_in_4bit"
                ) from error
            budget //= 2
            logger.warning("out of memory; continuing with batches of %d tokens", budget)
        else:
            tally.add(attempt)
            return rows, budget


def _score_within(
    sequences: Sequence[Sequenced],
    engine: TeacherEngine,
    top_k: int,
    token_budget: int,
    tally: Tally,
    advance: Callable[[int], object],
) -> TeacherRows:
    """`score` with a budget that must do."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, item in enumerate(sequences):
        groups[item.prefix].append(i)
    batches: list[list[int]] = []
    for members in groups.values():
        own = [sequences[i].own for i in members]
        several = [list(range(len(own)))] if engine.batches_itself else batches_by_length(own, token_budget)
        batches += [[members[j] for j in chosen] for chosen in several]

    def given() -> Iterator[list[Sequenced]]:
        """The batches; one counts as done when the engine asks for the next."""
        for batch in batches:
            items = [sequences[i] for i in batch]
            yield items
            own_tokens, tokens = sum(item.own for item in items), sum(map(len, items))
            tally.tokens += tokens
            tally.reused_tokens += tokens - own_tokens
            tally.padded_tokens += own_tokens if engine.batches_itself else len(items) * items[0].own
            tally.answer_tokens += sum(item.sequence.answer_length for item in items)
            advance(tokens)

    parts: dict[int, TeacherRows] = {}
    for batch, rows in zip(batches, engine.score_batches(given(), top_k), strict=True):
        start = 0
        for i in batch:
            stop = start + sequences[i].sequence.answer_length
            parts[i] = rows.take(slice(start, stop))
            start = stop
    return concatenate([parts[i] for i in range(len(sequences))])
