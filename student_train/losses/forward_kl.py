"""KL(teacher ‖ student): the student must cover what the teacher finds likely."""

from __future__ import annotations

import torch

from logitbank.student_train.losses.outcomes import OutcomeDivergence, kl
from logitbank.student_train.losses.sampled_forward_kl import SampledForwardKl


class ForwardKl(OutcomeDivergence):
    """Σ p (log p − log q) over the outcomes, p the teacher's probabilities and q the student's."""

    from_draws = SampledForwardKl

    def divergence(self, teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
        """(T,), nats."""
        return kl(teacher_TB, student_TB)
