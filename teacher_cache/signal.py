"""What is kept of a row of logits: its top K and the scalars that range over all of it.

Shape letters: T answer tokens, V rows of the `lm_head`, K ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from logitbank.storage import TeacherRows

# Logits worked on at once in float32: few enough for a CPU's cache, many enough to fill a GPU.
LOGIT_ELEMENTS = {"cpu": 600_000}
LOGIT_ELEMENTS_ACCELERATOR = 1 << 27
GROUP = 16  # columns of one group in `exact_top_k`


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


def read_signal(
    logits_TV: torch.Tensor,
    gold_T: torch.Tensor,
    top_k: int,
    tokenizer_size: int,
    excluded: torch.Tensor | None = None,
) -> Signal:
    """Top K and exact scalars of full logits, computed in float32 on the logits' device.

    Args:
        logits_TV: (T, V) raw logits, any float dtype; left as they are.
        gold_T: (T,) int64, gold answer tokens.
        top_k: K, at most `tokenizer_size` less the excluded ids.
        tokenizer_size: only ids below this enter the top K and the gold rank; `logsumexp` and
            `entropy` range over all V rows.
        excluded: (X,) int64, ids below `tokenizer_size` that enter neither; None for none.
    """
    parts = []
    step = rows_at_once(logits_TV.device, logits_TV.shape[1])
    scratch = logits_TV.new_empty((2, min(step, len(logits_TV)), logits_TV.shape[1]), dtype=torch.float32)
    for start in range(0, len(logits_TV), step):
        part_TV = logits_TV[start : start + step]
        gold = gold_T[start : start + step]
        parts.append(_read_part(part_TV.float(), gold, top_k, tokenizer_size, excluded, scratch[:, : len(part_TV)]))
    return Signal(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _read_part(
    logits_TV: torch.Tensor,
    gold_T: torch.Tensor,
    top_k: int,
    tokenizer_size: int,
    excluded: torch.Tensor | None,
    scratch: torch.Tensor,
) -> Signal:
    """`read_signal` of a few rows, in two buffers (2, T, V): new memory for each would cost more than the sums."""
    real_TV = rankable(logits_TV, tokenizer_size, excluded)
    values_TK, ids_TK = exact_top_k(real_TV, top_k)
    others = [logits_TV[:, tokenizer_size:], *([] if excluded is None else [logits_TV[:, excluded]])]
    peak_T1 = torch.cat([values_TK[:, :1], *others], dim=1).amax(dim=-1, keepdim=True)
    # H = log Σ e^d − Σ d·e^d / Σ e^d with d = logit − peak.
    below_TV = torch.sub(logits_TV, peak_T1, out=scratch[0])
    weight_TV = torch.exp(below_TV, out=scratch[1])
    total_T = weight_TV.sum(dim=-1)
    moment_T = weight_TV.mul_(below_TV).sum(dim=-1)
    if moment_T.isnan().any():  # 0·(−inf): such a logit adds nothing
        moment_T = torch.exp(below_TV, out=scratch[1]).mul_(below_TV.clamp_min_(-1e4)).sum(dim=-1)
    gold_logit_T = logits_TV.gather(1, gold_T[:, None])[:, 0]
    return Signal(
        token_ids_TK=ids_TK.to(torch.int32),
        logits_TK=values_TK,
        logsumexp_T=peak_T1[:, 0] + total_T.log(),
        entropy_T=total_T.log() - moment_T / total_T,
        gold_logit_T=gold_logit_T,
        gold_rank_T=_gold_rank(real_TV, values_TK, gold_logit_T, scratch[0]),
    )


def rankable(logits_TV: torch.Tensor, tokenizer_size: int, excluded: torch.Tensor | None) -> torch.Tensor:
    """The logits of ids below `tokenizer_size`, -inf at the excluded ones; a view of the given ones or a copy."""
    real_TV = logits_TV[:, :tokenizer_size]
    return real_TV if excluded is None else real_TV.index_fill(1, excluded, -torch.inf)


def _gold_rank(
    real_TV: torch.Tensor, values_TK: torch.Tensor, gold_logit_T: torch.Tensor, scratch: torch.Tensor
) -> torch.Tensor:
    """How many logits are larger than the gold token's, (T,) int32: where that is in the top K, so are they."""
    if (gold_logit_T < values_TK[:, -1]).any():
        above_TV = torch.gt(real_TV, gold_logit_T[:, None], out=scratch[:, : real_TV.shape[1]])  # floats add up fastest
        return above_TV.sum(dim=-1).to(torch.int32)
    return (values_TK > gold_logit_T[:, None]).sum(dim=-1).to(torch.int32)


def exact_top_k(logits_TV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids (T, K) of the K largest, in descending order, as `torch.topk`; faster over many columns.

    Columns are dealt to N groups of 16, column v to group v mod N. A value of the top K is the reason why its group's
    largest is among the K largest of all groups, or else K other values are as large: so K groups hold a top K.
    """
    tokens, columns = logits_TV.shape
    groups = columns // GROUP
    if groups <= 4 * top_k:
        return tuple(logits_TV.topk(top_k, dim=-1))  # type: ignore[return-value]
    dealt = groups * GROUP
    largest_TN = logits_TV[:, :dealt].unflatten(1, (GROUP, groups)).amax(dim=1)  # whole rows of groups: vectors add up
    group_TK = largest_TN.topk(top_k, dim=-1, sorted=False).indices
    first = torch.arange(0, dealt, groups, device=logits_TV.device)
    rest = torch.arange(dealt, columns, device=logits_TV.device).expand(tokens, -1)
    column_TC = torch.cat([(group_TK[:, None] + first[None, :, None]).flatten(1), rest], dim=1)
    values_TK, place_TK = logits_TV.gather(1, column_TC).topk(top_k, dim=-1)
    return values_TK, column_TC.gather(1, place_TK)


def signal(
    logits_TV: torch.Tensor,
    gold_T: torch.Tensor,
    top_k: int,
    tokenizer_size: int,
    excluded: torch.Tensor | None = None,
) -> TeacherRows:
    """`read_signal` as the rows that a store takes."""
    found = read_signal(logits_TV, gold_T, top_k, tokenizer_size, excluded)
    return TeacherRows(*(tensor.cpu().numpy() for tensor in found))
