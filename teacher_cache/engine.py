"""What a teacher engine is: prompts and answers in, `TeacherRows` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage import TeacherRows


@dataclass(frozen=True)
class Sequenced:
    """One sequence to score.

    Attributes:
        prompt_ids: (P,) int32, ends where the answer begins.
        answer_ids: (A,) int32, A >= 1; its logits stand at positions P - 1 to P + A - 2.
    """

    prompt_ids: NDArray[np.int32]
    answer_ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids) - 1


class TeacherEngine(Protocol):
    """A frozen language model that scores given answers."""

    def identity(self) -> Mapping[str, Any]:
        """What of the model and engine changes numbers: weights, dtype, engine, versions."""

    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        """Teacher rows of all answer tokens, sequences in the given order."""


def batches_by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group sequences so that each batch, padded to its longest, holds at most `token_budget` tokens.

    Sorted by length first, so that little is padded; a sequence longer than the budget goes alone.

    Returns:
        Lists of positions in `lengths`; each position once.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches
