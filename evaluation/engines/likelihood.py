"""What is read of the logits at answer positions: likelihood, first choices, and how far a teacher is.

Shape letters: T answer tokens, C of them at once, V rows of the `lm_head`, K ranks that a store holds, B outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from logitbank.storage import TeacherRows

# Logits worked on at once in float32: 64 MiB on a CPU, 512 MiB on an accelerator.
LOGITS = {"cpu": 1 << 24}
LOGITS_ACCELERATOR = 1 << 27
LOG_FLOOR = -50.0  # a token that the teacher rules out keeps this log-probability


class TokenScores(NamedTuple):
    """Of each answer token, (T,) float64 on the CPU; the last two are empty without a teacher.

    Attributes:
        negative_log_likelihood: −log p(gold token), nats.
        correct: 1 where the gold token is the first choice, else 0.
        kl: KL(teacher ‖ student) over K + 1 outcomes, nats.
        agreement: 1 where teacher and student have the same first choice, else 0.
    """

    negative_log_likelihood: torch.Tensor
    correct: torch.Tensor
    kl: torch.Tensor
    agreement: torch.Tensor


def token_scores(
    logits_of: Callable[[slice], torch.Tensor],
    gold_T: torch.Tensor,
    vocab_size: int,
    teacher: TeacherRows | None = None,
    teacher_vocab_size: int = 0,
) -> TokenScores:
    """Score answer tokens, a few at a time: all their logits together may not fit into memory.

    Args:
        logits_of: the (C, V) logits of a slice of the answer tokens, any float dtype; they may be overwritten.
        gold_T: (T,) int64 answer tokens, on the device of the logits.
        vocab_size: V.
        teacher: T rows of what the teacher said of the same tokens.
        teacher_vocab_size: rows of the teacher's `lm_head`; with K of that many nothing is outside the K.
    """
    step = max(1, LOGITS.get(gold_T.device.type, LOGITS_ACCELERATOR) // vocab_size)
    parts = []
    for start in range(0, len(gold_T), step):
        part = slice(start, min(start + step, len(gold_T)))
        logits_CV = logits_of(part).float()
        likelihood_C = logits_CV.logsumexp(dim=-1) - logits_CV.gather(1, gold_T[part, None])[:, 0]
        first_C = logits_CV.argmax(dim=-1)
        scores = [likelihood_C, first_C == gold_T[part]]
        if teacher is not None:
            scores += _compare(logits_CV, first_C, teacher, part, teacher_vocab_size)
        parts.append([values.double().cpu() for values in scores])
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return TokenScores(*columns, *[torch.zeros(0, dtype=torch.float64)] * (4 - len(columns)))


def _compare(
    logits_CV: torch.Tensor, first_C: torch.Tensor, teacher: TeacherRows, part: slice, teacher_vocab_size: int
) -> list[torch.Tensor]:
    """KL(teacher ‖ student) and whether first choices agree, (C,) each; overwrites the logits.

    The outcomes are the teacher's K tokens and *any other token*. Both sides are normalised over all tokens first,
    so the K + 1 probabilities are the true ones: what training minimises with `distillation.loss=forward_kl` at
    temperature 1. Merging tokens can only lower a divergence, so it is a lower bound of the one over all tokens.
    """
    device = logits_CV.device
    ids_CK = torch.from_numpy(teacher.token_ids[part]).to(device, torch.int64)
    theirs_CB = torch.from_numpy(teacher.logits[part] - teacher.logsumexp[part, None]).to(device)
    ours_CB = logits_CV.gather(1, ids_CK)
    if ids_CK.shape[1] < teacher_vocab_size:
        tail_C = torch.from_numpy(teacher.log_tail[part]).to(device)
        theirs_CB = torch.cat([theirs_CB, tail_C[:, None]], dim=1)
        rest_C = logits_CV.scatter_(1, ids_CK, -torch.inf).logsumexp(dim=-1)
        ours_CB = torch.cat([ours_CB, rest_C[:, None]], dim=1)
    log_p_CB = theirs_CB.clamp(min=LOG_FLOOR).log_softmax(dim=1)
    log_q_CB = ours_CB.log_softmax(dim=1)
    kl_C = (log_p_CB.exp() * (log_p_CB - log_q_CB)).sum(dim=1).clamp(min=0)  # rounding alone goes below
    return [kl_C, first_C == ids_CK[:, 0]]
