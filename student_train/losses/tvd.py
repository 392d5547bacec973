"""Total variation distance: the most by which two distributions differ about any event."""

from __future__ import annotations

import torch

from logitbank.student_train.losses.outcomes import OutcomeDivergence


class Tvd(OutcomeDivergence):
    """½ Σ |p − q| over the outcomes; at most 1. Not multiplied by τ²: it is not a KL divergence."""

    scaled = False

    def divergence(self, teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
        """(T,), a probability."""
        return 0.5 * (teacher_TB.exp() - student_TB.exp()).abs().sum(dim=1)
