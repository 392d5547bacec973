"""The loss of a step: per-token terms → one division by the step's answer tokens.

    L = (c Σ_t w_t CE_t + Σ_t w_t λ_t KD_t) / N,   N = answer tokens of the whole optimizer step

N counts all ranks and all accumulation steps, so L is never a mean of micro-batch means. w_t is 1, or with
`training.loss_weight=conversation` what makes each conversation count the same; its mean over the step is 1. c is
`distillation.ce_weight`, and 1 without a teacher.

Shapes: T answer tokens. Everything is in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from logitbank.student_train.losses.base import Loss, StudentLogits, TeacherLogits


class StepLoss(NamedTuple):
    """The differentiable total of one micro-batch and its terms per answer token.

    `argmax_T` is the student's first choice where it was asked for, else empty.
    """

    total: torch.Tensor
    ce_T: torch.Tensor
    kd_T: torch.Tensor
    argmax_T: torch.Tensor

    def detached(self) -> StepLoss:
        """The same numbers without their graph."""
        return StepLoss(*(tensor.detach() for tensor in self))


def cross_entropy(student: StudentLogits) -> torch.Tensor:
    """CE_t = logsumexp − gold logit, (T,)."""
    return student.logsumexp_T - student.gold_T


def weighted(values_T: torch.Tensor, weight_T: torch.Tensor | None) -> torch.Tensor:
    """The values times their weights, (T,); None weighs all of them 1."""
    return values_T if weight_T is None else weight_T * values_T


def step_loss(
    student: StudentLogits,
    teacher: TeacherLogits | None,
    *,
    kd_term: Loss | None,
    lambda_T: torch.Tensor,
    step_tokens: int,
    weight_T: torch.Tensor | None = None,
    ce_weight: float = 1.0,
) -> StepLoss:
    """One micro-batch's share of the step's loss.

    Args:
        student: logits at the micro-batch's answer positions.
        teacher: rows of the store in the same order, or None for cross-entropy alone.
        kd_term: of the run; None without a teacher.
        lambda_T: weight of each token's KD term; carries no gradient.
        step_tokens: N, answer tokens of the whole optimizer step over all ranks.
        weight_T: w, see above; None if all are 1.
        ce_weight: c, see above.
    """
    ce_T = cross_entropy(student)
    if teacher is None:
        return StepLoss(weighted(ce_T, weight_T).sum() / step_tokens, ce_T, torch.zeros_like(ce_T), student.argmax_T)
    assert kd_term is not None
    kd_T = kd_term(student, teacher)
    if teacher.taught_T is not None:
        kd_T = torch.where(teacher.taught_T > 0, kd_T, 0.0)
    total = (ce_weight * weighted(ce_T, weight_T).sum() + weighted(lambda_T * kd_T, weight_T).sum()) / step_tokens
    return StepLoss(total, ce_T, kd_T, student.argmax_T)
