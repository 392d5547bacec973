"""Sampling with transformers, token by token, from numbers that every answer has for itself.

`generate` draws all rows of a batch from one stream, so that what a row gets depends on its neighbours. Here the tokens
are drawn beforehand, one uniform number each, and `generate` takes the only one that is left.

Shape letters: B rows of a batch, S positions, V rows of the `lm_head`, N most tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from logitbank.evaluation.engines.base import Draw, Sampling
from logitbank.uniforms import uniforms


class DrawnTokens(LogitsProcessor):
    """Leaves each row the token that it draws."""

    def __init__(self, draws: Sequence[Draw], sampling: Sampling, device: torch.device) -> None:
        """Take the numbers of every row.

        Args:
            draws: the rows of the batch, which are padded on the left to its longest prompt.
            sampling: how tokens are drawn.
            device: where the logits are.
        """
        longest = max(draw.request.max_new_tokens for draw in draws)
        numbers = np.stack([uniforms(draw.seed, draw.name, longest) for draw in draws])
        self._uniform_BN = torch.from_numpy(numbers).to(device)
        self._sampling = sampling
        self._prompt = max(len(draw.request.prompt_ids) for draw in draws)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(B, V) scores with one finite number a row."""
        position = input_ids.shape[1] - self._prompt
        chosen_B1 = draw_tokens(scores, self._uniform_BN[:, position], self._sampling)[:, None]
        only = torch.full_like(scores, -torch.inf).scatter(1, chosen_B1, 0.0)
        return only  # type: ignore[return-value]


def draw_tokens(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(B,) int64, the token of each row at a place in [0, 1) of its distribution, likely tokens first.

    Args:
        logits_BV: raw logits, any float dtype.
        uniform_B: float64.
        sampling: how tokens are drawn.
    """
    logits_BV = logits_BV[:, : sampling.vocabulary].float()
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    ranked_BV, order_BV = (logits_BV / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    probability_BV = ranked_BV.double().softmax(dim=-1)  # float32 sums of 150,000 terms would not reach 1
    upto_BV = probability_BV.cumsum(dim=-1)
    kept_BV = upto_BV - probability_BV < sampling.top_p  # the token that reaches top_p is kept as well
    kept_BV[:, 0] = True
    mass_B = (probability_BV * kept_BV).sum(dim=-1)
    place_B1 = (uniform_B.to(upto_BV.device) * mass_B)[:, None]
    rank_B1 = torch.searchsorted(upto_BV, place_B1, right=True)
    rank_B1 = torch.minimum(rank_B1, kept_BV.sum(dim=-1, keepdim=True) - 1)  # what rounding puts after the last
    return order_BV.gather(1, rank_B1).squeeze(1)
