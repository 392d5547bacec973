"""KD terms between the teacher's top-K logits and the student's logits, per answer token.

The divergences compare K + 1 outcomes: the teacher's top-K tokens, and *any other token*, the tail. Both
sides are normalised over the full vocabulary first (the store keeps the teacher's `logsumexp` and tail), so
the outcomes' probabilities are the true ones, and merging the tail can only lower a divergence, never make it
negative (data-processing inequality). With K = V there is no tail and the formulas are the dense ones.

A temperature τ is applied to these K + 1 log-probabilities, which are then normalised again; with K = V
that is softmax(logits / τ). The KL family is multiplied by τ², as in Hinton, Vinyals & Dean (2015,
arXiv:1503.02531), to keep gradients of one size.

A store with draws (`teacher.signal=sampled` or `hybrid`) has no outcomes to compare, but an unbiased estimate of
the dense forward KL: see `sampled_forward_kl`.

Shapes: T answer tokens, K teacher logits, C of those and drawn tokens together. Everything is in nats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from logitbank.configs.schema import DistillationConfig
from logitbank.student_train.losses.step_loss import KDTerm, StudentLogits, TeacherLogits

# Float32 logits of size 20 leave an error of about 1e-6 in a sum of probabilities: less than that is no tail.
TAIL_FLOOR = 1e-6
LOG_FLOOR = -50.0  # a token that the teacher rules out (logit −inf) keeps this log-probability

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def kd_term(distillation: DistillationConfig, vocab_size: int, signal: str = "topk") -> KDTerm:
    """The KD term that the configuration asks for.

    Args:
        distillation: whose loss and temperature `check_store_fits` found to suit the signal.
        vocab_size: rows of the teacher's `lm_head`.
        signal: of the store: `topk`, `sampled` or `hybrid`.
    """
    if signal != "topk":
        return sampled_forward_kl
    if distillation.loss == "mse":
        return functools.partial(mse, normalize=distillation.normalize_logits)
    return functools.partial(
        bucketed,
        divergence=DIVERGENCES[distillation.loss],
        temperature=distillation.temperature,
        vocab_size=vocab_size,
    )


def mse(student: StudentLogits, teacher: TeacherLogits, *, normalize: str = "none") -> torch.Tensor:
    """Mean over k of (student logit − teacher logit)² on raw logits, (T,): the study's loss.

    A teacher that rules tokens out (logit −inf) has no finite difference there: they leave the mean.

    Args:
        student: logits at the teacher's ids.
        teacher: the teacher's logits.
        normalize: `center` subtracts each side's mean over the K logits, so that a constant shift, which
            changes no probability, costs nothing; `standardize` also divides by the standard deviation,
            so that scale costs nothing either (Sun et al. 2024, arXiv:2403.01427).
    """
    finite_TK = teacher.logits_TK.isfinite()
    count_T1 = finite_TK.sum(dim=1, keepdim=True)
    ours_TK = torch.where(finite_TK, student.top_TK, 0.0)
    theirs_TK = torch.where(finite_TK, teacher.logits_TK, 0.0)
    if normalize != "none":
        ours_TK, theirs_TK = (
            _normalized(side_TK, finite_TK, count_T1, scale=normalize == "standardize")
            for side_TK in (ours_TK, theirs_TK)
        )
    return (ours_TK - theirs_TK).square().sum(dim=1) / count_T1[:, 0]


def bucketed(
    student: StudentLogits,
    teacher: TeacherLogits,
    *,
    divergence: Divergence,
    temperature: float,
    vocab_size: int,
) -> torch.Tensor:
    """A divergence between the K + 1 outcomes of both sides, (T,), at a temperature; K outcomes if K = V."""
    has_tail = student.top_TK.shape[1] < vocab_size
    tails = teacher_tail_mass(teacher), tail_mass(student.top_TK, student.logsumexp_T)
    theirs_TB = _bucket_log_probabilities(
        teacher.logits_TK, teacher.logsumexp_T, tails[0] if has_tail else None, temperature
    )
    ours_TB = _bucket_log_probabilities(
        student.top_TK, student.logsumexp_T, tails[1] if has_tail else None, temperature
    )
    scale = 1.0 if divergence is tvd else temperature**2
    return scale * divergence(theirs_TB, ours_TB).clamp(min=0)  # rounding alone can go below zero


def sampled_forward_kl(student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
    """−H(p) − Σ_c w_c log q_c, (T,): with E[w] = p it is KL(p ‖ q) over all V tokens in expectation.

    The teacher's entropy H is stored, exact. A single value can be below zero: setting it to zero would bias
    the mean (Anshumann et al. 2025, "Sparse Logit Sampling").
    """
    assert teacher.weight_TC is not None
    log_q_TC = student.top_TK - student.logsumexp_T[:, None]
    return -teacher.entropy_T - (teacher.weight_TC * log_q_TC).sum(dim=1)


def forward_kl(teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) = Σ p (log p − log q): the student must cover what the teacher finds likely."""
    return (teacher_TB.exp() * (teacher_TB - student_TB)).sum(dim=1)


def reverse_kl(teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
    """KL(student ‖ teacher) = Σ q (log q − log p): the student must avoid what the teacher finds unlikely."""
    return forward_kl(student_TB, teacher_TB)


def jsd(teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
    """Jensen–Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2; at most log 2."""
    middle_TB = torch.logaddexp(teacher_TB, student_TB) - math.log(2)
    return 0.5 * (forward_kl(teacher_TB, middle_TB) + forward_kl(student_TB, middle_TB))


def tvd(teacher_TB: torch.Tensor, student_TB: torch.Tensor) -> torch.Tensor:
    """Total variation distance ½ Σ |p − q|; at most 1."""
    return 0.5 * (teacher_TB.exp() - student_TB.exp()).abs().sum(dim=1)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tvd": tvd,
}


def tail_mass(logits_TK: torch.Tensor, logsumexp_T: torch.Tensor) -> torch.Tensor:
    """Probability outside the given logits, (T,), at temperature 1."""
    return (1 - (logits_TK - logsumexp_T[:, None]).exp().sum(dim=1)).clamp(min=0)


def teacher_tail_mass(teacher: TeacherLogits) -> torch.Tensor:
    """Probability outside the teacher's logits, (T,): as its store says, or what they leave of 1."""
    if teacher.log_tail_T is None:
        return tail_mass(teacher.logits_TK, teacher.logsumexp_T)
    return teacher.log_tail_T.exp()


def _bucket_log_probabilities(
    logits_TK: torch.Tensor, logsumexp_T: torch.Tensor, tail_T: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Log-probabilities of the K tokens and, where there is one, of the tail, (T, K + 1)."""
    log_TB = (logits_TK - logsumexp_T[:, None]).clamp(min=LOG_FLOOR)
    if tail_T is not None:
        log_TB = torch.cat([log_TB, tail_T.clamp(min=TAIL_FLOOR).log()[:, None]], dim=1)
    return (log_TB / temperature).log_softmax(dim=1)


def _normalized(side_TK: torch.Tensor, finite_TK: torch.Tensor, count_T1: torch.Tensor, *, scale: bool) -> torch.Tensor:
    mean_T1 = side_TK.sum(dim=1, keepdim=True) / count_T1
    centered_TK = torch.where(finite_TK, side_TK - mean_T1, 0.0)
    if not scale:
        return centered_TK
    variance_T1 = centered_TK.square().sum(dim=1, keepdim=True) / count_T1
    return centered_TK / (variance_T1 + 1e-6).sqrt()
