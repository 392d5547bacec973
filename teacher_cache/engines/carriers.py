"""How a teacher's whole signal leaves vLLM, which returns the largest entries of a row of logits and no more.

The scalars' bits are written into entries of the row that are not needed, as numbers far above any logit and in
a known order. They come back before the top K. The first of these carriers sits at the gold token, so that
greedy decoding generates the given answer.

Shape letters: T rows, V rows of the `lm_head`, K ranks, C carriers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.storage import TeacherRows
from logitbank.teacher_cache.signal import Signal

CARRIERS = 8  # four scalars of 32 bits, 16 bits in each
LARGEST_EXPONENT = 120  # carrier c is in [2^(120-c), 2^(121-c)): above any logit, below the largest float32


def pack(
    logits_TV: torch.Tensor,
    signal: Signal,
    gold_T: torch.Tensor,
    top_k: int,
    tokenizer_size: int,
    excluded: torch.Tensor | None = None,
) -> None:
    """Write a signal into the logits that it was read from, in place.

    The C + K largest entries are then the carriers, in order, and the K largest logits of other tokens than gold.

    Args:
        logits_TV: (T, V) float32.
        signal: read with `top_k + CARRIERS` ranks; the tokens of the last ranks make room.
        gold_T: (T,) int64, gold answer tokens.
        top_k: K.
        tokenizer_size: rows at and above this are padding, and ruled out.
        excluded: (X,) int64, ids below it that are ruled out too; None for none.
    """
    tail_TC = signal.token_ids_TK[:, top_k:].long()
    # One fewer than there are: the gold token, which has a carrier already, or else the last.
    last = (tail_TC == gold_T[:, None]).int().argsort(dim=1, stable=True)[:, : CARRIERS - 1]
    carrier_ids_TC = torch.cat([gold_T[:, None], tail_TC.gather(1, last)], dim=1)
    bits_T4 = torch.stack(
        [
            signal.logsumexp_T.float().view(torch.int32),
            signal.entropy_T.float().view(torch.int32),
            signal.gold_logit_T.float().view(torch.int32),
            signal.gold_rank_T,
        ],
        dim=1,
    )
    halves_TC = torch.stack([bits_T4 >> 16 & 0xFFFF, bits_T4 & 0xFFFF], dim=2).flatten(1)
    scale_C = 2.0 ** (LARGEST_EXPONENT - torch.arange(CARRIERS, device=logits_TV.device))
    logits_TV[:, tokenizer_size:] = -torch.inf
    if excluded is not None:
        logits_TV.index_fill_(1, excluded, -torch.inf)
    logits_TV.scatter_(1, carrier_ids_TC, scale_C * (1 + halves_TC / 65536))


def unpack(token_ids: NDArray[np.int32], values: NDArray[np.float32]) -> TeacherRows:
    """The signal of rows that `pack` wrote.

    Args:
        token_ids: (T, C + K), ids of the largest entries, largest first.
        values: (T, C + K), the entries.

    Raises:
        RuntimeError: entries that `pack` cannot have written.
    """
    fraction, exponent = np.frexp(values[:, :CARRIERS])  # fraction in [1/2, 1)
    if (exponent != LARGEST_EXPONENT + 1 - np.arange(CARRIERS)).any():
        raise RuntimeError("vLLM did not return the entries that its logits processor wrote; is another one active?")
    halves = ((fraction * 2 - 1) * 65536).astype(np.uint32)
    bits = (halves[:, 0::2] << 16 | halves[:, 1::2]).astype(np.uint32)
    logsumexp, entropy, gold_logit = (np.ascontiguousarray(bits[:, i]).view(np.float32) for i in range(3))
    gold_rank = bits[:, 3].astype(np.int32)
    # The gold token's entry was a carrier: put it back at its rank; one rank too many came in its place.
    ranks = np.arange(values.shape[1] - CARRIERS)
    at_gold, source = ranks == gold_rank[:, None], CARRIERS + ranks - (ranks > gold_rank[:, None])
    return TeacherRows(
        token_ids=np.where(at_gold, token_ids[:, :1], np.take_along_axis(token_ids, source, axis=1)),
        logits=np.where(at_gold, gold_logit[:, None], np.take_along_axis(values, source, axis=1)),
        logsumexp=logsumexp,
        entropy=entropy,
        gold_logit=gold_logit,
        gold_rank=gold_rank,
    )
