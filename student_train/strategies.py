"""λ of each answer token: how much the teacher counts, decided by `distillation.strategy`."""

from __future__ import annotations

import torch

from configs.schema import DistillationConfig
from student_train.data import Batch


class LambdaWeights:
    """λ_t of every answer token of a batch."""

    def __init__(self, distillation: DistillationConfig) -> None:
        self._lambda = distillation.lambda_distill

    def token_weights(self, batch: Batch, step: int) -> torch.Tensor:
        """λ_t, (T,) float32, without gradient.

        Args:
            batch: a micro-batch on its device.
            step: optimizer step, counted from 0.
        """
        return torch.full(batch.gold_T.shape, self._lambda, device=batch.gold_T.device)
