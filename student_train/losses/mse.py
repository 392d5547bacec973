"""Mean squared difference of raw logits: the study's loss."""

from __future__ import annotations

import torch

from logitbank.configs.schema import DistillationConfig
from logitbank.student_train.losses.base import Loss, StudentLogits, TeacherLogits

VARIANCE_FLOOR = 1e-6  # logits that are all the same have no scale to divide by


class Mse(Loss):
    """Mean over k of (student logit − teacher logit)² at the teacher's top-K ids.

    A teacher that rules tokens out (logit −inf) has no finite difference there: they leave the mean.

    `distillation.normalize_logits=center` subtracts each side's mean over the K logits first, so that a constant
    shift, which changes no probability, costs nothing; `standardize` also divides by the standard deviation, so that
    scale costs nothing either (Sun et al. 2024, arXiv:2403.01427).
    """

    takes_normalize_logits = True

    def __init__(self, distillation: DistillationConfig, vocab_size: int) -> None:
        super().__init__(distillation, vocab_size)
        self.needs = ("logits",) if distillation.normalize_logits == "none" else ()

    def __call__(self, student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
        """(T,), in squared logits."""
        finite_TK = teacher.logits_TK.isfinite()
        count_T1 = finite_TK.sum(dim=1, keepdim=True)
        ours_TK = torch.where(finite_TK, student.top_TK, 0.0)
        theirs_TK = torch.where(finite_TK, teacher.logits_TK, 0.0)
        normalize = self.distillation.normalize_logits
        if normalize != "none":
            ours_TK, theirs_TK = (
                _normalized(side_TK, finite_TK, count_T1, scale=normalize == "standardize")
                for side_TK in (ours_TK, theirs_TK)
            )
        return (ours_TK - theirs_TK).square().sum(dim=1) / count_T1[:, 0]


def _normalized(side_TK: torch.Tensor, finite_TK: torch.Tensor, count_T1: torch.Tensor, *, scale: bool) -> torch.Tensor:
    mean_T1 = side_TK.sum(dim=1, keepdim=True) / count_T1
    centered_TK = torch.where(finite_TK, side_TK - mean_T1, 0.0)
    if not scale:
        return centered_TK
    variance_T1 = centered_TK.square().sum(dim=1, keepdim=True) / count_T1
    return centered_TK / (variance_T1 + VARIANCE_FLOOR).sqrt()
