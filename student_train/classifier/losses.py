"""The loss for comparisons: what people preferred, and what teachers say of it.

    L = α T² KL(teacher ‖ student at T) + (1 − α) CE + w MSE

CE is between the target, smoothed, and the student at temperature 1. KL and MSE, the mean over the classes, are between
the teacher's and the student's probabilities at T. T² keeps the gradients of one size (Hinton, Vinyals & Dean 2015,
arXiv:1503.02531). A row that no teacher scored has L = CE with weight 1, as every row has if there is no teacher:
α shares out the weight of a row between two sources, and it has one.

Shapes: B rows of a batch, N rows, C classes. Everything is in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class PairTerms(NamedTuple):
    """Terms of each row, (B,); KL and MSE are 0 if no teacher scored it, and KL is not multiplied by T²."""

    loss_B: torch.Tensor
    ce_B: torch.Tensor
    kl_B: torch.Tensor
    mse_B: torch.Tensor


def pair_terms(
    logits_BC: torch.Tensor,
    target_BC: torch.Tensor,
    teacher_BC: torch.Tensor,
    taught_B: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    mse_weight: float,
    label_smoothing: float,
) -> PairTerms:
    """The loss of each row; see above.

    Args:
        logits_BC: of the student, float32 or float64.
        target_BC: probabilities.
        teacher_BC: probabilities at T; anything finite if there are none.
        taught_B: bool, which rows a teacher scored.
        alpha: α, from 0 to 1.
        temperature: T, above 0.
        mse_weight: w, at least 0.
        label_smoothing: the share of each target that is spread over the classes evenly.
    """
    smooth_BC = (1 - label_smoothing) * target_BC + label_smoothing / target_BC.shape[1]
    ce_B = -(smooth_BC * logits_BC.log_softmax(dim=1)).sum(dim=1)
    student_BC = (logits_BC / temperature).log_softmax(dim=1)
    kl_B = (torch.xlogy(teacher_BC, teacher_BC) - teacher_BC * student_BC).sum(dim=1)
    mse_B = (teacher_BC - student_BC.exp()).square().mean(dim=1)
    kl_B, mse_B = (torch.where(taught_B, term_B, 0.0) for term_B in (kl_B, mse_B))
    alpha_B = alpha * taught_B.to(ce_B)
    return PairTerms(alpha_B * temperature**2 * kl_B + (1 - alpha_B) * ce_B + mse_weight * mse_B, ce_B, kl_B, mse_B)


def average_views(
    logits: Mapping[str, NDArray[np.float32]], weights: Mapping[str, float], temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The mean over views of their probabilities at a temperature.

    Args:
        logits: of each view, (N, C), NaN in the rows that it lacks; at least one view.
        weights: of views; 1 for one that is not named.
        temperature: T.

    Returns:
        (N, C) float32 probabilities, and (N,) whether every view has the row; where one lacks it, zeros.
    """
    total = sum(weights.get(view, 1.0) for view in logits)
    mean_NC: NDArray[np.float64] = np.zeros(next(iter(logits.values())).shape)
    for view, own_NC in logits.items():
        scaled_NC = own_NC.astype(np.float64) / temperature
        scaled_NC -= scaled_NC.max(axis=1, keepdims=True)
        probabilities_NC = np.exp(scaled_NC)
        mean_NC += weights.get(view, 1.0) / total * probabilities_NC / probabilities_NC.sum(axis=1, keepdims=True)
    taught_N: NDArray[np.bool_] = np.isfinite(mean_NC).sum(axis=1) == mean_NC.shape[1]
    mean_NC[~taught_N] = 0
    return mean_NC.astype(np.float32), taught_N
