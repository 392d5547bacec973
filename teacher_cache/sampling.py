"""Draws from full logits: which tokens, how often, from one uniform number per answer token.

Systematic sampling: the line [0, 1) is divided among the tokens by probability, and M points 1/M apart are
laid over it, all moved by one uniform number. A token is hit M·p times in expectation, exactly, so every
mean over draws is unbiased, as with independent draws; but its count is M·p rounded up or down, so the
means scatter less. Arithmetic is on integers, whose sums come out the same on any device in any order.

Shape letters: T answer tokens, V rows of the `lm_head`, K ranks, M draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.storage import LOG_MASS_FLOOR, TeacherRows
from logitbank.teacher_cache.signal import rankable

WEIGHT_ONE = float(1 << 32)  # integer weight of the likeliest token; V · 2^32 · M stays below 2^63


@dataclass(frozen=True)
class Sampling:
    """What to draw for one sequence.

    Attributes:
        draws: M, per answer token.
        beyond_top: from the tokens outside the top K alone.
        uniforms: (A,) float64 in [0, 1), one per answer token.
    """

    draws: int
    beyond_top: bool
    uniforms: NDArray[np.float64]

    def take(self, answer_tokens: slice) -> Sampling:
        """The same for some of the answer tokens."""
        return replace(self, uniforms=self.uniforms[answer_tokens])


def joined(parts: Sequence[Sampling | None]) -> Sampling | None:
    """What to draw for a batch: for its sequences, end to end."""
    if parts[0] is None:
        return None
    return replace(parts[0], uniforms=np.concatenate([part.uniforms for part in parts if part is not None]))


def add_samples(
    rows: TeacherRows,
    logits_TV: torch.Tensor,
    sampling: Sampling,
    tokenizer_size: int,
    excluded: torch.Tensor | None = None,
) -> TeacherRows:
    """The rows with draws from the logits that they were read from; only ids that may enter the top K are drawn."""
    real_TV = rankable(logits_TV, tokenizer_size, excluded).float()
    if sampling.beyond_top:
        top_TK = torch.from_numpy(rows.token_ids.astype(np.int64)).to(real_TV.device)
        real_TV = real_TV.scatter(1, top_TK, -torch.inf)
    peak_T1 = real_TV.amax(dim=1, keepdim=True)
    some_T1 = peak_T1.isfinite()
    weight_TV = ((real_TV - torch.where(some_T1, peak_T1, 0.0)).exp() * WEIGHT_ONE).round().long()
    log_mass_T = real_TV.logsumexp(dim=1).cpu().double().numpy() - rows.logsumexp
    log_mass_T = np.clip(log_mass_T, LOG_MASS_FLOOR, 0.0).astype(np.float32)
    cumulative_TV = weight_TV.cumsum(dim=1)
    total_T1 = cumulative_TV[:, -1:]
    uniform_T1 = torch.from_numpy(sampling.uniforms)[:, None].to(total_T1.device)
    shift_T1 = torch.minimum((uniform_T1 * total_T1).long(), (total_T1 - 1).clamp(min=0))
    points_TM = (torch.arange(sampling.draws, device=total_T1.device) * total_T1 + shift_T1) // sampling.draws
    drawn_TM = torch.searchsorted(cumulative_TV, points_TM, right=True).cpu().numpy()
    ids_TM, counts_TM = _count(drawn_TM)
    drawable_T = some_T1[:, 0].cpu().numpy() & (log_mass_T > LOG_MASS_FLOOR)
    return replace(
        rows,
        sample_ids=np.where(drawable_T[:, None], ids_TM, 0).astype(np.int32),
        sample_counts=np.where(drawable_T[:, None], counts_TM, 0).astype(np.int32),
        sample_log_mass=log_mass_T,
    )


def _count(drawn_TM: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct values of each ascending row, first in their row, and how often each occurs there."""
    new_TM = np.ones(drawn_TM.shape, dtype=bool)
    new_TM[:, 1:] = drawn_TM[:, 1:] != drawn_TM[:, :-1]
    place_TM = new_TM.cumsum(axis=1) - 1
    rows_TM = np.broadcast_to(np.arange(len(drawn_TM))[:, None], drawn_TM.shape)
    ids_TM, counts_TM = np.zeros_like(drawn_TM), np.zeros_like(drawn_TM)
    ids_TM[rows_TM, place_TM] = drawn_TM
    np.add.at(counts_TM, (rows_TM, place_TM), 1)
    return ids_TM, counts_TM
