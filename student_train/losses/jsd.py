"""Jensen–Shannon divergence: symmetric, and bounded."""

from __future__ import annotations

import math

import torch

from logitbank.student_train.losses.outcomes import OutcomeDivergence, kl


class Jsd(OutcomeDivergence):
    """½ KL(p ‖ m) + ½ KL(q ‖ m) over the outcomes, m = (p + q) / 2; at most log 2 at temperature 1."""

    def divergence(self, teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
        """(T,), nats."""
        middle_TB = torch.logaddexp(teacher_TB, student_TB) - math.log(2)
        return 0.5 * (kl(teacher_TB, middle_TB) + kl(student_TB, middle_TB))
