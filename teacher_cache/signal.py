"""What is kept of a row of logits: its top K and the scalars that range over all of it.

Shape letters: T answer tokens, V rows of the `lm_head`, K ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from storage import TeacherRows

# Logits worked on at once in float32: few enough for a CPU's cache, many enough to fill a GPU.
LOGIT_ELEMENTS = {"cpu": 1 << 21}
LOGIT_ELEMENTS_ACCELERATOR = 1 << 27


class Signal(NamedTuple):
    """`TeacherRows` as tensors on the logits' device."""

    token_ids_TK: torch.Tensor
    logits_TK: torch.Tensor
    logsumexp_T: torch.Tensor
    entropy_T: torch.Tensor
    gold_logit_T: torch.Tensor
    gold_rank_T: torch.Tensor


def rows_at_once(device: torch.device, vocab_size: int) -> int:
    """How many rows of logits to work on together."""
    return max(1, LOGIT_ELEMENTS.get(device.type, LOGIT_ELEMENTS_ACCELERATOR) // vocab_size)


def read_signal(logits_TV: torch.Tensor, gold_T: torch.Tensor, top_k: int, tokenizer_size: int) -> Signal:
    """Top K and exact scalars of full logits, computed in float32 on the logits' device.

    Args:
        logits_TV: (T, V) raw logits, any float dtype; left as they are.
        gold_T: (T,) int64, gold answer tokens.
        top_k: K, at most `tokenizer_size`.
        tokenizer_size: only ids below this enter the top K and the gold rank; `logsumexp` and
            `entropy` range over all V rows.
    """
    logits_TV = logits_TV.float()
    real_TV = logits_TV[:, :tokenizer_size]
    values_TK, ids_TK = real_TV.topk(top_k, dim=-1)
    peak_T1 = logits_TV.amax(dim=-1, keepdim=True)
    # H = log Σ e^d − Σ d·e^d / Σ e^d with d = logit − peak. The clamp keeps 0·(−inf) from becoming NaN.
    below_TV = (logits_TV - peak_T1).clamp_min_(-1e4)
    weight_TV = below_TV.exp()
    total_T = weight_TV.sum(dim=-1)
    logsumexp_T = peak_T1[:, 0] + total_T.log()
    entropy_T = total_T.log() - torch.linalg.vecdot(weight_TV, below_TV) / total_T
    gold_logit_T = logits_TV.gather(1, gold_T[:, None])[:, 0]
    gold_rank_T = (real_TV > gold_logit_T[:, None]).sum(dim=-1)
    return Signal(ids_TK.to(torch.int32), values_TK, logsumexp_T, entropy_T, gold_logit_T, gold_rank_T.to(torch.int32))


def signal(logits_TV: torch.Tensor, gold_T: torch.Tensor, top_k: int, tokenizer_size: int) -> TeacherRows:
    """`read_signal` as the rows that a store takes."""
    return TeacherRows(*(tensor.cpu().numpy() for tensor in read_signal(logits_TV, gold_T, top_k, tokenizer_size)))
