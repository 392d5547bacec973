"""What is kept of a row of logits: its top K and the scalars that range over all of it.

The sums are taken over blocks of columns, as they are made, while a processor's cache holds them.

Shape letters: T answer tokens, V rows of the `lm_head`, C columns of one block, N groups of columns, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from logitbank.storage import TeacherRows

# Logits worked on at once in float32: few enough for a CPU's cache, many enough to fill a GPU.
LOGIT_ELEMENTS = {"cpu": 600_000}
LOGIT_ELEMENTS_ACCELERATOR = 1 << 27
GROUP = 16  # columns of one group in `Columns`
LOWEST = torch.finfo(torch.float32).min
NO_WEIGHT = -1e4  # the exponential of anything below is 0, and 0 times this is too


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


class Columns:
    """The columns of a row of logits in blocks, and those that may be ranked in groups of 16 of one block.

    A block's column c belongs to its group c mod n: then the largest of each group is found in whole vectors.

    Args:
        vocab_size: V.
        width: C, of all blocks but the last.
        tokenizer_size: columns at and above this are never ranked.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, width: int, tokenizer_size: int, device: torch.device) -> None:
        self.tokenizer_size = tokenizer_size
        self.blocks = [(start, min(start + width, vocab_size)) for start in range(0, vocab_size, width)]
        first, rest = [], []
        for start, stop in self.blocks:
            groups = self.groups(start, stop)
            group_N = torch.arange(groups, device=device)
            first.append(torch.stack([group_N + start, torch.full_like(group_N, groups)]))
            rest.append(torch.arange(start + groups * GROUP, max(start, min(stop, tokenizer_size)), device=device))
        self.first_N, self.step_N = torch.cat(first, dim=1)
        self.rest_R = torch.cat(rest)

    def groups(self, start: int, stop: int) -> int:
        """Groups of the block of these columns."""
        return max(0, min(stop, self.tokenizer_size) - start) // GROUP

    def largest(self, start: int, block_TC: torch.Tensor, excluded: torch.Tensor | None) -> torch.Tensor:
        """(T, n), the largest logit of each group of the block that begins at `start`."""
        groups = self.groups(start, start + block_TC.shape[1])
        real_TC = block_TC[:, : groups * GROUP]
        if excluded is not None:
            inside = excluded[(excluded >= start) & (excluded < start + groups * GROUP)]
            real_TC = real_TC.index_fill(1, inside - start, -torch.inf)
        return real_TC.unflatten(1, (GROUP, groups)).amax(dim=1)

    def top_k(self, logits_TV: torch.Tensor, largest_TN: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and ids (T, K) of the K largest that may be ranked, in descending order.

        A value of the top K is the reason why its group's largest is among the K largest of all groups, or else K
        other values are as large: so K groups, and the columns in no group, hold a top K.
        """
        if largest_TN.shape[1] <= 4 * top_k:
            return _ranked(logits_TV[:, : self.tokenizer_size], top_k)
        group_TK = _places_of_largest(largest_TN, top_k)
        member_G = torch.arange(GROUP, device=logits_TV.device)
        column_TC = (self.first_N[group_TK][:, :, None] + self.step_N[group_TK][:, :, None] * member_G).flatten(1)
        column_TC = torch.cat([column_TC, self.rest_R.expand(len(logits_TV), -1)], dim=1)
        values_TK, place_TK = _ranked(logits_TV.gather(1, column_TC), top_k)
        return values_TK, column_TC.gather(1, place_TK)


def _places_of_largest(values_TN: torch.Tensor, count: int) -> torch.Tensor:
    """Where the `count` largest of each row are, (T, count) int64, in no order."""
    if values_TN.device.type != "cpu":
        return values_TN.topk(count, dim=-1, sorted=False).indices
    # NumPy's selection works in vectors, PyTorch's on a CPU does not.
    start = values_TN.shape[1] - count
    return torch.from_numpy(np.argpartition(values_TN.numpy(), start, axis=1)[:, start:])


def _ranked(values_TN: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row and where they are, in descending order."""
    if values_TN.device.type != "cpu":
        return tuple(values_TN.topk(count, dim=-1))  # type: ignore[return-value]
    place_TK = _places_of_largest(values_TN, count)
    order_TK = torch.from_numpy(np.argsort(-values_TN.gather(1, place_TK).numpy(), axis=1))
    place_TK = place_TK.gather(1, order_TK)
    return values_TN.gather(1, place_TK), place_TK


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
    columns = Columns(logits_TV.shape[1], logits_TV.shape[1], tokenizer_size, logits_TV.device)
    scratch = logits_TV.new_empty((2, min(step, len(logits_TV)) * logits_TV.shape[1]), dtype=torch.float32)
    for start in range(0, len(logits_TV), step):
        part_TV = logits_TV[start : start + step].to(torch.float32, copy=excluded is not None)
        gold = gold_T[start : start + step]
        parts.append(read_blocks(part_TV, [(0, part_TV)], columns, gold, top_k, excluded, scratch))
    return joined(parts)


def joined(parts: Iterable[Signal]) -> Signal:
    """The signals of rows, end to end."""
    return Signal(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def read_blocks(
    logits_TV: torch.Tensor,
    blocks: Iterable[tuple[int, torch.Tensor]],
    columns: Columns,
    gold_T: torch.Tensor,
    top_k: int,
    excluded: torch.Tensor | None,
    scratch: torch.Tensor,
) -> Signal:
    """`read_signal` of rows whose blocks are being filled.

    Args:
        logits_TV: (T, V) float32. Afterwards the excluded columns are -inf.
        blocks: first column and columns (T, C) of each block in turn, views of `logits_TV` that are filled when
            they come.
        columns: how V is divided into them.
        gold_T: see `read_signal`.
        top_k: see `read_signal`.
        excluded: see `read_signal`.
        scratch: (2, T·C or more) float32: new memory for each block would cost more than the sums.
    """
    sums, largest = [], []
    on_cpu = logits_TV.device.type == "cpu"
    for start, block_TC in blocks:
        sums.append(_sums(block_TC, scratch, careful=not on_cpu))
        largest.append(columns.largest(start, block_TC, excluded))
    if on_cpu and any(moment_T.isnan().any() for _, _, moment_T in sums):  # 0·(−inf): such a logit adds nothing
        sums = [_sums(logits_TV[:, start:stop], scratch, careful=True) for start, stop in columns.blocks]
    logsumexp_T, entropy_T = _combined(sums)
    gold_logit_T = logits_TV.gather(1, gold_T[:, None])[:, 0]
    if excluded is not None:
        logits_TV.index_fill_(1, excluded, -torch.inf)
    values_TK, ids_TK = columns.top_k(logits_TV, torch.cat(largest, dim=1), top_k)
    return Signal(
        token_ids_TK=ids_TK.to(torch.int32),
        logits_TK=values_TK,
        logsumexp_T=logsumexp_T,
        entropy_T=entropy_T,
        gold_logit_T=gold_logit_T,
        gold_rank_T=_gold_rank(logits_TV[:, : columns.tokenizer_size], values_TK, gold_logit_T),
    )


def _sums(
    block_TC: torch.Tensor, scratch: torch.Tensor, *, careful: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest logit, Σ e^d and Σ d·e^d with d = logit − largest, (T,) each; `careful` where logits may be -inf."""
    below_TC, weight_TC = (buffer[: block_TC.numel()].view(block_TC.shape) for buffer in scratch)
    peak_T1 = block_TC.amax(dim=1, keepdim=True).clamp_(min=LOWEST)
    torch.sub(block_TC, peak_T1, out=below_TC)
    if careful:
        below_TC.clamp_(min=NO_WEIGHT)
    torch.exp(below_TC, out=weight_TC)
    total_T = weight_TC.sum(dim=1)
    return peak_T1[:, 0], total_T, weight_TC.mul_(below_TC).sum(dim=1)


def _combined(sums: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """`logsumexp` and entropy (T,) of rows from the sums of their blocks: H = log Σ e^d − Σ d·e^d / Σ e^d."""
    peak_TB, total_TB, moment_TB = (torch.stack(parts, dim=1) for parts in zip(*sums, strict=True))
    peak_T1 = peak_TB.amax(dim=1, keepdim=True)
    below_TB = (peak_TB - peak_T1).clamp_(min=NO_WEIGHT)
    weight_TB = below_TB.exp()
    total_T = (weight_TB * total_TB).sum(dim=1)
    moment_T = (weight_TB * (moment_TB + total_TB * below_TB)).sum(dim=1)
    return peak_T1[:, 0] + total_T.log(), total_T.log() - moment_T / total_T


def rankable(logits_TV: torch.Tensor, tokenizer_size: int, excluded: torch.Tensor | None) -> torch.Tensor:
    """The logits of ids below `tokenizer_size`, -inf at the excluded ones; a view of the given ones or a copy."""
    real_TV = logits_TV[:, :tokenizer_size]
    return real_TV if excluded is None else real_TV.index_fill(1, excluded, -torch.inf)


def _gold_rank(real_TV: torch.Tensor, values_TK: torch.Tensor, gold_logit_T: torch.Tensor) -> torch.Tensor:
    """How many logits are larger than the gold token's, (T,) int32: where that is in the top K, so are they."""
    rank_T = (values_TK > gold_logit_T[:, None]).sum(dim=-1)
    outside_T = gold_logit_T < values_TK[:, -1]
    if real_TV.device.type != "cpu":  # all rows, without asking the device which
        rank_T = torch.where(outside_T, (real_TV > gold_logit_T[:, None]).sum(dim=-1), rank_T)
    else:
        for row in outside_T.nonzero()[:, 0].tolist():
            rank_T[row] = int(np.count_nonzero(real_TV[row].numpy() > gold_logit_T[row].item()))
    return rank_T.to(torch.int32)


def exact_top_k(logits_TV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids (T, K) of the K largest, in descending order, as `torch.topk`; faster over many columns."""
    size = logits_TV.shape[1]
    columns = Columns(size, size, size, logits_TV.device)
    return columns.top_k(logits_TV, columns.largest(0, logits_TV, None), top_k)


def to_rows(found: Signal) -> TeacherRows:
    """A signal as the rows that a store takes."""
    if found.logits_TK.device.type != "cuda":
        return TeacherRows(*(tensor.cpu().numpy() for tensor in found))
    # One wait for all six, where `cpu()` would wait for each.
    there = [
        torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True) for tensor in found
    ]
    torch.cuda.current_stream(found.logits_TK.device).synchronize()
    return TeacherRows(*(tensor.numpy() for tensor in there))


def signal(
    logits_TV: torch.Tensor,
    gold_T: torch.Tensor,
    top_k: int,
    tokenizer_size: int,
    excluded: torch.Tensor | None = None,
) -> TeacherRows:
    """`read_signal` as the rows that a store takes."""
    return to_rows(read_signal(logits_TV, gold_T, top_k, tokenizer_size, excluded))
