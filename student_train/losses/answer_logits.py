"""From hidden states to what losses need of logits, never more than a chunk of them at once.

Shapes: T answer tokens, K teacher ids, M = K + 1 ids with the gold one first, V rows of the `lm_head`, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from logitbank.student_train.losses.base import StudentLogits

Head = Callable[[torch.Tensor], torch.Tensor]


def answer_logits(
    hidden_TD: torch.Tensor,
    head: Head,
    gold_T: torch.Tensor,
    top_ids_TK: torch.Tensor,
    *,
    chunk_tokens: int,
    with_argmax: bool = False,
    with_rest: bool = False,
    head_draws: bool = True,
) -> StudentLogits:
    """Apply the `lm_head` to the answer positions, `chunk_tokens` of them at a time.

    No more than one chunk's (chunk_tokens, V) logits are alive at once: every chunk but the last keeps
    only its hidden states and is computed again in the backward pass. The last one is the first that
    backward asks for, so it keeps its logits and costs nothing twice; where all answer tokens fit in
    one chunk, nothing is recomputed.

    Args:
        hidden_TD: the last hidden states at the answer positions.
        head: hidden states -> logits.
        gold_T: the answer tokens.
        top_ids_TK: the teacher's ids; K may be 0.
        chunk_tokens: answer tokens whose logits may be alive at once.
        with_argmax: see `StudentLogits`.
        with_rest: see `StudentLogits`; no id may occur twice among a token's K.
        head_draws: whether the head may draw random numbers (dropout): a chunk computed again must draw the same.
    """
    starts = range(0, len(gold_T), chunk_tokens)
    parts: list[StudentLogits] = []
    for start in starts:
        chunk = slice(start, start + chunk_tokens)
        arguments = (hidden_TD[chunk], head, gold_T[chunk], top_ids_TK[chunk], with_argmax, with_rest)
        if start == starts[-1] or not torch.is_grad_enabled():
            parts.append(_read_chunk(*arguments))
        else:
            parts.append(checkpoint(_read_chunk, *arguments, use_reentrant=False, preserve_rng_state=head_draws))
    return StudentLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def read_logits(
    logits_TV: torch.Tensor,
    gold_T: torch.Tensor,
    top_ids_TK: torch.Tensor,
    *,
    with_argmax: bool = False,
    with_rest: bool = False,
) -> StudentLogits:
    """What losses need of dense logits, in at least float32, differentiable.

    One backward pass over (T, V) serves all results, where `logsumexp` and `gather` of PyTorch would each make
    a dense gradient and add them up.
    """
    nothing = gold_T.new_empty(0)
    ids_TM = torch.cat([gold_T[:, None], top_ids_TK], dim=1)
    argmax_T = logits_TV.argmax(dim=-1) if with_argmax else nothing
    left_out_TK = ids_TM[:, 1:] if with_rest else ids_TM[:, :0]
    logsumexp_T, picked_TM = _ReadLogits.apply(logits_TV, ids_TM, left_out_TK)
    gold_logit_T, top_TK = picked_TM[:, 0], picked_TM[:, 1:]
    if not with_rest:
        return StudentLogits(logsumexp_T, gold_logit_T, top_TK, argmax_T, logsumexp_T.new_empty(0))
    rest_T = logsumexp_T
    logsumexp_T = torch.cat([top_TK, rest_T[:, None]], dim=1).logsumexp(dim=1)
    return StudentLogits(logsumexp_T, gold_logit_T, top_TK, argmax_T, rest_T)


def _read_chunk(
    hidden_TD: torch.Tensor,
    head: Head,
    gold_T: torch.Tensor,
    top_ids_TK: torch.Tensor,
    with_argmax: bool,
    with_rest: bool,
) -> StudentLogits:
    return read_logits(head(hidden_TD), gold_T, top_ids_TK, with_argmax=with_argmax, with_rest=with_rest)


class _ReadLogits(torch.autograd.Function):
    """`(logsumexp over the rows that are not left out, logits at ids)`."""

    @staticmethod
    def forward(
        ctx: Any, logits_TV: torch.Tensor, ids_TM: torch.Tensor, left_out_TK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide_TV = _at_least_float32(logits_TV)
        picked_TM = wide_TV.gather(-1, ids_TM)
        if left_out_TK.shape[1]:
            # masked for a moment, where a masked copy would be another (T, V) to fill; `data` has no version,
            # because nothing that is kept for backward has changed when it is restored
            left_out_logits_TK = wide_TV.data.gather(-1, left_out_TK)
            logsumexp_T = wide_TV.data.scatter_(-1, left_out_TK, -torch.inf).logsumexp(dim=-1)
            wide_TV.data.scatter_(-1, left_out_TK, left_out_logits_TK)
        else:
            logsumexp_T = wide_TV.logsumexp(dim=-1)
        ctx.save_for_backward(logits_TV, ids_TM, left_out_TK, logsumexp_T)
        return logsumexp_T, picked_TM

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        to_logsumexp_T, to_picked_TM = gradients
        logits_TV, ids_TM, left_out_TK, logsumexp_T = ctx.saved_tensors
        finite_T = logsumexp_T.clamp(min=torch.finfo(logsumexp_T.dtype).min)
        gradient_TV = (_at_least_float32(logits_TV) - finite_T[:, None]).exp_().mul_(to_logsumexp_T[:, None])
        gradient_TV.scatter_(-1, left_out_TK, 0.0).scatter_add_(-1, ids_TM, to_picked_TM)
        return gradient_TV.to(logits_TV.dtype), None, None


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
