"""Divergences of K + 1 outcomes: the teacher's top-K tokens, and *any other token*, the rest.

Both sides are normalised over the full vocabulary first, so the outcomes' probabilities are the true ones, and
merging the rest can only lower a divergence, never make it negative (data-processing inequality). With K = V there
is no rest and the formulas are the dense ones.

The student's rest is a logsumexp over its own rows, never one minus the others: an overconfident student, whose rest
has a probability of e⁻⁴⁰, still gets its true loss and gradient. The teacher's is a field of the store.

A temperature τ is applied to these K + 1 log-probabilities, which are then normalised again; with K = V
that is softmax(logits / τ). The KL family is multiplied by τ², as in Hinton, Vinyals & Dean (2015,
arXiv:1503.02531), to keep gradients of one size.

Shapes: T answer tokens, K teacher logits, B outcomes: K + 1, or K without a rest. Everything is in nats.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from logitbank.student_train.losses.base import Loss, StudentLogits, TeacherLogits

LOG_FLOOR = -50.0  # a token that the teacher rules out (logit −inf) keeps this log-probability
ROUNDINGS = 8  # sums of probabilities are off by this many units in the last place: less than that counts as none


class OutcomeDivergence(Loss):
    """A divergence between the outcomes' distributions of teacher and student.

    Attributes:
        scaled: whether it is multiplied by τ².
    """

    takes_temperature = True
    reads_rest = True
    needs = ("logsumexp",)
    scaled: ClassVar[bool] = True

    @abstractmethod
    def divergence(self, teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
        """(T,) in nats, of two distributions given by their log-probabilities."""

    def __call__(self, student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
        """The divergence of the outcomes at the configured temperature, (T,)."""
        temperature = self.distillation.temperature
        theirs_TB = (teacher.logits_TK - teacher.logsumexp_T[:, None]).clamp(min=LOG_FLOOR)
        ours_TB = student.top_TK
        if student.top_TK.shape[1] < self.vocab_size:
            theirs_TB = torch.cat([theirs_TB, teacher_log_tail(teacher).clamp(min=LOG_FLOOR)[:, None]], dim=1)
            ours_TB = torch.cat([ours_TB, student.rest_T[:, None]], dim=1)
        value_T = self.divergence(
            (theirs_TB / temperature).log_softmax(dim=1), (ours_TB / temperature).log_softmax(dim=1)
        )
        # rounding alone can go below zero; the gradient there is that of the true value
        value_T = value_T + (-value_T.detach()).clamp(min=0)
        return value_T * temperature**2 if self.scaled else value_T


def kl(left_TB: torch.Tensor, right_TB: torch.Tensor) -> torch.Tensor:
    """KL(left ‖ right) = Σ p (log p − log q), (T,), of log-probabilities."""
    return (left_TB.exp() * (left_TB - right_TB)).sum(dim=1)


def teacher_log_tail(teacher: TeacherLogits) -> torch.Tensor:
    """Log-probability outside the teacher's logits, (T,): as its store says, or what they leave of 1.

    The latter is a difference of rounded numbers: it is never less than their rounding.
    """
    if teacher.log_tail_T is not None:
        return teacher.log_tail_T
    left_T = 1 - (teacher.logits_TK - teacher.logsumexp_T[:, None]).exp().sum(dim=1)
    return left_T.clamp(min=ROUNDINGS * torch.finfo(left_T.dtype).eps).log()
