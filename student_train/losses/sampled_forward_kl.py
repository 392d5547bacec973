"""Forward KL from draws: what a store with `teacher.signal=sampled` or `hybrid` can tell without bias."""

from __future__ import annotations

import torch

from logitbank.student_train.losses.base import Loss, StudentLogits, TeacherLogits


class SampledForwardKl(Loss):
    """−H(p) − Σ_c w_c log q_c: with E[w] = p it is KL(p ‖ q) over all V tokens in expectation.

    The teacher's entropy H is stored, exact. A single value can be below zero: setting it to zero would bias
    the mean (Anshumann et al. 2025, "Sparse Logit Sampling").
    """

    needs = ("logsumexp", "entropy")

    def __call__(self, student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
        """(T,), nats."""
        assert teacher.weight_TC is not None
        log_q_TC = student.top_TK - student.logsumexp_T[:, None]
        return -teacher.entropy_T - (teacher.weight_TC * log_q_TC).sum(dim=1)
