"""KL(student ‖ teacher): the student must avoid what the teacher finds unlikely."""

from __future__ import annotations

import torch

from logitbank.student_train.losses.outcomes import OutcomeDivergence, kl


class ReverseKl(OutcomeDivergence):
    """Σ q (log q − log p) over the outcomes, q the student's probabilities and p the teacher's."""

    def divergence(self, teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
        """(T,), nats."""
        return kl(student_TB, teacher_TB)
