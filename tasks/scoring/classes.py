"""Scoring probabilities of classes against what people said, which may be shares of several classes.

Shape letters: N examples, C classes, M bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-15  # probabilities are clipped to it and to 1 minus it, as public leaderboards do
BINS = 15
CLASS_METRICS = ("log_loss", "accuracy", "brier", "ece")
LOWER_IS_BETTER = ("log_loss", "brier", "ece")
_GAPS = tuple(f"gap_{number:02}" for number in range(BINS))

Floats = NDArray[np.float64]


def class_statistics(probabilities_NC: Floats, targets_NC: Floats) -> dict[str, Floats]:
    """Per-example numbers, each (N,) float64, whose means give every metric; see `class_metrics`.

    Args:
        probabilities_NC: of each class; rows sum to 1.
        targets_NC: the share of each class in what people said; rows sum to 1.

    Returns:
        `log_loss` −Σ t·log p (nats), `accuracy` the share that the likeliest class has in the target, `brier`
        Σ (p − t)², and `gap_00` to `gap_14`: confidence minus accuracy in the bin of the example's confidence, 0 in
        all others. Confidence is the probability of the likeliest class.
    """
    likeliest_N = probabilities_NC.argmax(axis=1)
    rows_N = np.arange(len(likeliest_N))
    accuracy_N = targets_NC[rows_N, likeliest_N].astype(np.float64)
    confidence_N = probabilities_NC[rows_N, likeliest_N]
    clipped_NC = probabilities_NC.clip(SMALLEST, 1 - SMALLEST)
    gaps_NM = np.where(bins_of(confidence_N)[:, None] == np.arange(BINS), (confidence_N - accuracy_N)[:, None], 0.0)
    return {
        "log_loss": -(targets_NC * np.log(clipped_NC)).sum(axis=1),
        "accuracy": accuracy_N,
        "brier": np.square(probabilities_NC - targets_NC).sum(axis=1),
        **{name: gaps_NM[:, number] for number, name in enumerate(_GAPS)},
    }


def bins_of(confidence_N: Floats) -> NDArray[np.int64]:
    """Which of `BINS` bins of equal width each confidence falls into: bin m holds those above m/M up to (m + 1)/M."""
    return np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)


def class_metrics(means: Mapping[str, Any]) -> dict[str, Any]:
    """`log_loss` (nats), `accuracy`, `brier` and `ece` from the means of `class_statistics`.

    The expected calibration error (Guo et al., 2017, arXiv:1706.04599) is the mean over examples of the distance
    between mean confidence and accuracy in their bin. Since a bin of n examples weighs n/N, that is the sum of the
    absolute means of its gaps.
    """
    found = {name: means[name] for name in ("log_loss", "accuracy", "brier")}
    return {**found, "ece": sum(np.abs(means[name]) for name in _GAPS)}
