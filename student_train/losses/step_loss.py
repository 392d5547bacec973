"""The loss, top to bottom: answer logits → per-token terms → one division by the step's answer tokens.

Shapes: T answer tokens, K teacher logits per token, V rows of the `lm_head`, D hidden size. Everything
is in nats and float32 (float64 where the logits are).

    L = (Σ_t CE_t + Σ_t λ_t · KD_t) / N,   N = answer tokens of the whole optimizer step

N counts all ranks and all accumulation steps, so L is never a mean of micro-batch means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.checkpoint import checkpoint

Head = Callable[[torch.Tensor], torch.Tensor]


class StudentLogits(NamedTuple):
    """What every loss needs of the student's logits, at the answer positions alone.

    Attributes:
        logsumexp_T: over all V rows.
        gold_T: logit of the gold answer token.
        top_TK: logits at the teacher's top-K ids, then at the drawn ones if any; K is 0 without a teacher.
        argmax_T: id of the largest logit, or empty where it was not asked for.
    """

    logsumexp_T: torch.Tensor
    gold_T: torch.Tensor
    top_TK: torch.Tensor
    argmax_T: torch.Tensor


@dataclass(frozen=True)
class TeacherLogits:
    """What the store says about the same answer tokens; scalars (T,) in nats.

    `log_tail_T` is the log-probability of all tokens but the K, where the store has it: one minus the K
    probabilities would be noise where rounded values say little about so small a rest. `weight_TC` is there
    for a store with draws alone: the probability that each of the C tokens whose student logits are read, the
    K ranks and the drawn ones, stands for; its mean over draws is the teacher's distribution.
    """

    logits_TK: torch.Tensor
    logsumexp_T: torch.Tensor
    entropy_T: torch.Tensor
    gold_logit_T: torch.Tensor
    gold_rank_T: torch.Tensor
    log_tail_T: torch.Tensor | None = None
    weight_TC: torch.Tensor | None = None
    zeroshot_cross_entropy_T: torch.Tensor | None = None  # for the gate that asks what few shots gained

    @property
    def cross_entropy_T(self) -> torch.Tensor:
        """−log p(gold) of the teacher, over its full distribution."""
        return self.logsumexp_T - self.gold_logit_T


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


def answer_logits(
    hidden_TD: torch.Tensor,
    head: Head,
    gold_T: torch.Tensor,
    top_ids_TK: torch.Tensor,
    *,
    chunk_tokens: int,
    with_argmax: bool = False,
) -> StudentLogits:
    """Apply the `lm_head` to the answer positions, `chunk_tokens` of them at a time.

    No more than one chunk's (chunk_tokens, V) logits are alive at once: every chunk but the last keeps
    only its hidden states and is computed again in the backward pass. The last one is the first that
    backward asks for, so it keeps its logits and costs nothing twice; where all answer tokens fit in
    one chunk, nothing is recomputed.
    """
    ids_TM = torch.cat([gold_T[:, None], top_ids_TK], dim=1)
    starts = range(0, len(ids_TM), chunk_tokens)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for start in starts:
        chunk = slice(start, start + chunk_tokens)
        arguments = (hidden_TD[chunk], head, ids_TM[chunk], with_argmax)
        if start == starts[-1] or not torch.is_grad_enabled():
            parts.append(_read_chunk(*arguments))
        else:  # the head draws no random numbers: nothing to restore before it runs again
            parts.append(checkpoint(_read_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
    logsumexp_T, picked_TM, argmax_T = (torch.cat(column) for column in zip(*parts, strict=True))
    return StudentLogits(logsumexp_T, picked_TM[:, 0], picked_TM[:, 1:], argmax_T)


def read_logits(logits_TV: torch.Tensor, ids_TM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiable `(logsumexp over V, logits at ids)` of each row, in at least float32.

    One backward pass over (T, V) serves both results, where `logsumexp` and `gather` of PyTorch would
    each make a dense gradient and add the two.
    """
    logsumexp_T, picked_TM = _ReadLogits.apply(logits_TV, ids_TM)
    return logsumexp_T, picked_TM


def cross_entropy(student: StudentLogits) -> torch.Tensor:
    """CE_t = logsumexp − gold logit, (T,)."""
    return student.logsumexp_T - student.gold_T


class KDTerm(Protocol):
    """A divergence per answer token."""

    def __call__(self, student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
        """KD_t, (T,): zero where the student says what the teacher says, never negative.

        From draws, both hold in expectation only.
        """


def step_loss(
    student: StudentLogits,
    teacher: TeacherLogits | None,
    *,
    kd_term: KDTerm,
    lambda_T: torch.Tensor,
    step_tokens: int,
) -> StepLoss:
    """One micro-batch's share of the step's loss.

    Args:
        student: logits at the micro-batch's answer positions.
        teacher: rows of the store in the same order, or None for cross-entropy alone.
        kd_term: made by `student_train.divergences.kd_term`.
        lambda_T: weight of each token's KD term; carries no gradient.
        step_tokens: N, answer tokens of the whole optimizer step over all ranks.
    """
    ce_T = cross_entropy(student)
    if teacher is None:
        return StepLoss(ce_T.sum() / step_tokens, ce_T, torch.zeros_like(ce_T), student.argmax_T)
    kd_T = kd_term(student, teacher)
    total = (ce_T.sum() + (lambda_T * kd_T).sum()) / step_tokens
    return StepLoss(total, ce_T, kd_T, student.argmax_T)


def _read_chunk(
    hidden_TD: torch.Tensor, head: Head, ids_TM: torch.Tensor, with_argmax: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits_TV = head(hidden_TD)
    argmax_T = logits_TV.argmax(dim=-1) if with_argmax else ids_TM.new_empty(0)
    return (*read_logits(logits_TV, ids_TM), argmax_T)


class _ReadLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_TV: torch.Tensor, ids_TM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide_TV = _at_least_float32(logits_TV)
        logsumexp_T = wide_TV.logsumexp(dim=-1)
        ctx.save_for_backward(logits_TV, ids_TM, logsumexp_T)
        return logsumexp_T, wide_TV.gather(-1, ids_TM)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        to_logsumexp_T, to_picked_TM = gradients
        logits_TV, ids_TM, logsumexp_T = ctx.saved_tensors
        gradient_TV = _at_least_float32(logits_TV) - logsumexp_T[:, None]
        gradient_TV.exp_().mul_(to_logsumexp_T[:, None]).scatter_add_(-1, ids_TM, to_picked_TM)
        return gradient_TV.to(logits_TV.dtype), None


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
