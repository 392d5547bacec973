"""Scoring a model by how likely it finds the gold answers, token by token, instead of by what it writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from logitbank.tasks.common import Task

NATS = ("cross_entropy", "kl")  # metrics in nats per answer token
OF_A_TEACHER = ("kl", "agreement")
LOWER_IS_BETTER = (*NATS, "perplexity")


class LikelihoodScores(Task):
    """The part of a task that is scored by the likelihood of its gold answers; the task inherits from it.

    The statistics of an example are sums over its answer tokens: `tokens`, `negative_log_likelihood` (nats) and
    `correct_tokens` (the model's first choice is the gold token). With a teacher's rows there are `compared_tokens`
    (those that it says something of), `kl` (Σ KL(teacher ‖ model), nats) and `agreeing_tokens` (both have the same
    first choice); where an answer was generated, `parse_failure`. Metrics are ratios of their means, so a long
    example counts for more than a short one, and a bootstrap resamples whole examples.
    """

    primary_metric = "token_accuracy"

    def statistics(self, output: str, reference: Any, language: str, protocol: str | None = None) -> dict[str, float]:
        """`parse_failure` alone: what is generated is for people to read."""
        return {"parse_failure": float(self.parse(output) is None)}

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """`token_accuracy`, `cross_entropy` and `perplexity`, and what else there are statistics for.

        The second and `kl` are in nats per answer token, `perplexity` is a number of tokens; all others are fractions.
        """
        cross_entropy = means["negative_log_likelihood"] / means["tokens"]
        found = {
            "token_accuracy": means["correct_tokens"] / means["tokens"],
            "cross_entropy": cross_entropy,
            "perplexity": np.exp(cross_entropy),
        }
        if "compared_tokens" in means:
            found["kl"] = means["kl"] / means["compared_tokens"]
            found["agreement"] = means["agreeing_tokens"] / means["compared_tokens"]
        if "parse_failure" in means:
            found["parse_failure"] = means["parse_failure"]
        return found
