"""`entropy`: a teacher that does not know counts less."""

from __future__ import annotations

import math

import torch

from logitbank.student_train.batch import Batch
from logitbank.student_train.strategies.base import Strategy


class Entropy(Strategy):
    """Multiplies λ by 1 − H(teacher) / log V."""

    needs = ("entropy",)

    def factor(self, batch: Batch) -> torch.Tensor:
        """(T,), between 0 and 1."""
        assert batch.teacher is not None
        return entropy_factor(batch.teacher.entropy_T, self.setting.store.info.vocab_size)


def entropy_factor(entropy_T: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """1 − H(teacher) / log V, (T,).

    Args:
        entropy_T: of the teacher's full distribution, nats.
        vocab_size: V, rows of the teacher's `lm_head`.
    """
    return (1 - entropy_T / math.log(vocab_size)).clamp(min=0)
