"""Which demonstrations a few-shot prompt shows: drawn by hash, so the same in every process and on every day."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from logitbank.tasks.common import Example, TaskError

SELECTIONS = ("per_example", "fixed")


def draw_demonstrations(
    pool: Sequence[Example], query: Example, count: int, *, seed: int, selection: str = "per_example"
) -> list[Example]:
    """Draw demonstrations for a query; never the query itself, nor the same question again.

    Args:
        pool: candidates, in a stable order (see `tasks.data.demonstration_pool`).
        query: the example that is asked.
        count: how many.
        seed: of the draw.
        selection: `per_example`: a draw of its own for each query, a function of seed and example id;
            `fixed`: one draw for all queries of a task and language, in which a query that would meet
            itself gets the next candidate instead.

    Raises:
        TaskError: an unknown selection, or a pool with too few usable candidates.
    """
    if selection not in SELECTIONS:
        raise TaskError(f"fewshot.selection: expected one of {', '.join(SELECTIONS)}, got {selection!r}")
    key = query.example_id if selection == "per_example" else f"{query.task}/{query.language}"
    drawn: list[Example] = []
    if count <= 0:
        return drawn
    for index in _random_indices(len(pool), f"{seed}/{key}"):
        candidate = pool[index]
        if query.asks_the_same(candidate) or any(candidate.asks_the_same(other) for other in drawn):
            continue
        drawn.append(candidate)
        if len(drawn) == count:
            return drawn
    raise TaskError(
        f"{query.task}/{query.language}: expected at least {count} demonstrations other than the query, "
        f"found {len(drawn)} in a pool of {len(pool)}"
    )


def shuffle_answers(demonstrations: Sequence[Example], *, seed: int, query: Example) -> list[Example]:
    """The same questions with their answers permuted: the ablation that keeps format and label counts.

    As many answers change as can: all of them, unless one answer makes up more than half. The
    permutation is a function of seed, query and answers.
    """
    count = len(demonstrations)
    keys = [_digest(f"{seed}/{query.example_id}/shuffle/{index}") for index in range(count)]
    answers = Counter(example.answer for example in demonstrations)
    groups = {answer: _digest(f"{seed}/{query.example_id}/{answer}") for answer in answers}
    # Equal answers side by side: a rotation by the largest group then moves every answer out of its own.
    order = sorted(range(count), key=lambda index: (groups[demonstrations[index].answer], keys[index]))
    shift = max(answers.values(), default=0)
    shuffled = list(demonstrations)
    for position, index in enumerate(order):
        giver = demonstrations[order[(position + shift) % count]]
        shuffled[index] = dataclasses.replace(demonstrations[index], answer=giver.answer)
    return shuffled


def _random_indices(count: int, key: str) -> Iterator[int]:
    """Every index below `count` once, in an order that depends on the key alone; cheap for the first few."""
    seen: set[int] = set()
    draw = 0
    while len(seen) < count:
        if len(seen) * 2 > count:  # drawing on would mostly repeat: rank what is left instead
            left = sorted(set(range(count)) - seen, key=lambda index: _digest(f"{key}/rest/{index}"))
            yield from left
            return
        index = _digest(f"{key}/{draw}") % count
        draw += 1
        if index not in seen:
            seen.add(index)
            yield index


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
