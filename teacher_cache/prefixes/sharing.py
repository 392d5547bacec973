"""Which sequences begin alike, so that their common beginning is computed once and reused.

With `fewshot.selection=fixed` all prompts of a task and language open with the same demonstrations;
zero-shot prompts share a system prompt. Nothing here knows of either: it looks at token ids alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from logitbank.sequences import AnsweredSequence

# A group that saves less of its tokens than this is not worth batches of its own; see docs/benchmarks.md.
LEAST_SAVED = 0.5
# What a group costs per shard beside its tokens, in tokens: a pass for the prefix, one more batch.
GROUP_COST = 128


@dataclass
class _Node:
    """Sequences `left` to `right` of the sorted order, which share their first `depth` tokens."""

    depth: int
    left: int
    children: list[_Node] = field(default_factory=list)
    saved: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)


def shared_prefixes(
    sequences: Sequence[AnsweredSequence],
    units: NDArray[np.int64],
    *,
    least_saved: float = LEAST_SAVED,
    group_cost: int = GROUP_COST,
) -> NDArray[np.int32]:
    """How many leading tokens of each sequence are worth sharing; sequences that share them are one group.

    Only what stands before the first answer, the *prompt*, is shared. Prompts are sorted, which makes those with
    a common prefix neighbours, and the tree of their common prefixes is cut where most tokens are saved; a group
    takes in every prompt that has its prefix. A prefix is counted as computed once per unit (a shard), so that a
    group scattered over many shards does not look better than it is. The last token of a prompt is never shared:
    the first answer token is predicted there.

    Args:
        sequences: what a teacher reads.
        units: (N,) int64, the unit of work of each sequence, within which prefixes are surely kept.
        least_saved: groups that save a smaller share of their tokens, last answers aside, are left alone.
        group_cost: tokens that a group costs in each of its units.

    Returns:
        (N,) int32, 0 where nothing is shared. Two sequences are in the same group exactly if their numbers
        are equal and their first so many tokens are.
    """
    prompts = [sequence.prompt_ids for sequence in sequences]
    shared = np.zeros(len(prompts), dtype=np.int32)
    if len(prompts) < 2:
        return shared
    keys = [prompt[:-1].astype(">i4").tobytes() for prompt in prompts]
    order = np.asarray(sorted(range(len(prompts)), key=keys.__getitem__), dtype=np.int64)
    common = [_common(prompts[a][:-1], prompts[b][:-1]) for a, b in itertools.pairwise(order)]
    lengths = np.cumsum([0, *(sequences[i].spans[-1].start for i in order)])
    root = _Node(0, 0)
    stack = [root]

    def close(node: _Node, right: int) -> None:
        distinct = len(np.unique(units[order[node.left : right]]))
        own = node.depth * (right - node.left - distinct) - group_cost * distinct
        if own < least_saved * (lengths[right] - lengths[node.left]):
            own = 0  # also where it is negative
        below = sum(child.saved for child in node.children)
        node.saved = max(own, below)
        if own and own >= below:
            node.groups = [(node.left, right, node.depth)]
        else:
            node.groups = [group for child in node.children for group in child.groups]
        node.children = []

    for right, depth in enumerate([*common, 0], start=1):
        left, finished = right - 1, None
        while stack[-1].depth > depth:
            finished = stack.pop()
            close(finished, right)
            left = finished.left
            if stack[-1].depth >= depth:
                stack[-1].children.append(finished)
                finished = None
        if stack[-1].depth < depth:
            stack.append(_Node(depth, left, [finished] if finished else []))
    close(root, len(prompts))
    for left, right, depth in root.groups:
        shared[order[left:right]] = depth
    return shared


def _common(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """Length of the longest common prefix."""
    size = min(len(first), len(second))
    different = first[:size] != second[:size]
    return int(different.argmax()) if different.any() else size
