"""Comparisons that occur more than once, in either order of their answers, as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from logitbank.preference import Pair, Target


@dataclass(frozen=True)
class Distinct:
    """What is left of rows.

    Attributes:
        pairs: in the order in which they first occur.
        merged: rows that went into an earlier one of the same two answers.
        contradictory: groups of such rows that disagree about who won; their target is the mean.
        same_prompt: rows left out because an earlier one has their prompt.
    """

    pairs: list[Pair]
    merged: int
    contradictory: int
    same_prompt: int


def distinct(pairs: Sequence[Pair], dedup: str) -> Distinct:
    """Every comparison once.

    Args:
        pairs: with targets.
        dedup: `pair` merges rows of the same prompt and the same two answers, whichever comes first; `prompt` then
            keeps the first of each prompt; `none` keeps all.
    """
    if dedup == "none":
        return Distinct(list(pairs), 0, 0, 0)
    groups: dict[int, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.pair_key, []).append(pair)
    merged = [_merge(group) for group in groups.values()]
    contradictory = sum(len({_target_as(group[0], pair) for pair in group}) > 1 for group in groups.values())
    if dedup == "pair":
        return Distinct(merged, len(pairs) - len(merged), contradictory, 0)
    first: dict[int, Pair] = {}
    for pair in merged:
        first.setdefault(pair.prompt_key, pair)
    return Distinct(list(first.values()), len(pairs) - len(merged), contradictory, len(merged) - len(first))


def without_prompts(pairs: Sequence[Pair], prompts: Collection[int]) -> list[Pair]:
    """The comparisons whose prompt is none of these."""
    return [pair for pair in pairs if pair.prompt_key not in prompts]


def _merge(group: Sequence[Pair]) -> Pair:
    """The first of a group of duplicates, with the mean of what all say."""
    first = group[0]
    if len(group) == 1:
        return first
    targets = [_target_as(first, pair) for pair in group]
    mean = [sum(column) / len(targets) for column in zip(*targets, strict=True)]
    return replace(first, target=(mean[0], mean[1], mean[2]))


def _target_as(first: Pair, pair: Pair) -> Target:
    """The target of a duplicate, its answers in the order of the first."""
    same_order = _stripped(pair.response_a) == _stripped(first.response_a)
    target = (pair if same_order else pair.swapped()).target
    assert target is not None  # training rows have one
    return target


def _stripped(turns: Sequence[str]) -> list[str]:
    return [turn.strip() for turn in turns]
