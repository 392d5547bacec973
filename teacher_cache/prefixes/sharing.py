"""Which sequences begin alike, so that their common beginning is computed once and reused.

With `fewshot.selection=fixed` all prompts of a task and language open with the same demonstrations;
zero-shot prompts share a system prompt. Nothing here knows of either: it looks at token ids alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from logitbank.teacher_cache.prefixes.prompts import PromptFile

# A group that saves less of its tokens than this is not worth batches of its own; see docs/benchmarks.md.
LEAST_SAVED = 0.5
# What a group costs per shard beside its tokens, in tokens: a pass for the prefix, one more batch.
GROUP_COST = 128


@dataclass
class _Node:
    """Sequences from `left` on in the sorted order, which share their first `depth` tokens.

    Attributes:
        depth: see above.
        left: see above.
        saved: tokens that the best choice of groups below it saves so far; in the end, or it as a group itself.
        groups: that choice: first sequence, the one after the last, and tokens shared.
    """

    depth: int
    left: int
    saved: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, child: _Node) -> None:
        """Add what is below it."""
        self.saved += child.saved
        self.groups += child.groups


def shared_prefixes(
    prompts: PromptFile,
    units: NDArray[np.int64],
    *,
    least_saved: float = LEAST_SAVED,
    group_cost: int = GROUP_COST,
) -> NDArray[np.int32]:
    """How many leading tokens of each sequence are worth sharing; sequences that share them are one group.

    Only what comes before the first answer, the *prompt*, is shared. Prompts are sorted, which makes those with
    a common prefix neighbours, and the tree of their common prefixes is cut where most tokens are saved; a group
    takes in every prompt that has its prefix. A prefix is counted as computed once per unit (a shard), so that a
    group scattered over many shards does not look better than it is. The last token of a prompt is never shared:
    the first answer token is predicted there.

    Args:
        prompts: of what a teacher reads.
        units: (N,) int64, the unit of work of each sequence, within which prefixes are surely kept.
        least_saved: groups that save a smaller share of their tokens, last answers aside, are left alone.
        group_cost: tokens that a group costs in each of its units.

    Returns:
        (N,) int32, 0 if nothing is shared. Two sequences are in the same group exactly if their numbers
        are equal and their first so many tokens are.
    """
    shared = np.zeros(len(prompts), dtype=np.int32)
    if len(prompts) < 2:
        return shared
    order, common = prompts.in_order()
    lengths = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(prompts.read_tokens[order], dtype=np.int64)])
    root = _Node(0, 0)
    stack = [root]

    def close(node: _Node, right: int) -> None:
        distinct = len(np.unique(units[order[node.left : right]]))
        own = node.depth * (right - node.left - distinct) - group_cost * distinct
        if own < least_saved * (lengths[right] - lengths[node.left]):
            own = 0  # also if it is negative
        if own and own >= node.saved:
            node.saved, node.groups = own, [(node.left, right, node.depth)]

    for right in range(1, len(prompts) + 1):
        depth = int(common[right]) if right < len(prompts) else 0
        left, finished = right - 1, None
        while stack[-1].depth > depth:
            finished = stack.pop()
            close(finished, right)
            left = finished.left
            if stack[-1].depth >= depth:
                stack[-1].take(finished)
                finished = None
        if stack[-1].depth < depth:
            stack.append(_Node(depth, left))
            if finished is not None:
                stack[-1].take(finished)
    close(root, len(prompts))
    for left, right, depth in root.groups:
        shared[order[left:right]] = depth
    return shared
