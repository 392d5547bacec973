"""Bootstrap replicates that resample whole clusters: comparisons of one prompt are judged alike.

Shape legend: D draws, N examples of a cell, M clusters of them, S statistics of a task.

A draw takes M clusters with replacement, each with all of its examples, and forms the metric from the means over the
examples taken (the cluster bootstrap; Cameron, Gelbach and Miller, 2008, Review of Economics and Statistics 90).
Drawing single examples would treat several looks at one prompt as independent, and give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from logitbank.evaluation.report.unknown_tasks import Scored

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def cluster_sums(numbers_NS: FloatArray, clusters_N: np.ndarray[Any, Any]) -> tuple[FloatArray, FloatArray]:
    """(M,S) sums of the statistics of each cluster and its (M,) number of examples, in the clusters' own order.

    The order is a function of the clusters alone, so that all models meet the same draws.
    """
    order = np.argsort(clusters_N, kind="stable")
    ordered = clusters_N[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    sizes = np.diff(np.append(starts, len(order))).astype(np.float64)
    return np.add.reduceat(numbers_NS[order], starts, axis=0), sizes


def bootstrap_clusters(
    task: Scored, sums_MS: FloatArray, sizes_M: FloatArray, names: Sequence[str], counts: Iterable[FloatArray]
) -> dict[str, FloatArray]:
    """Every metric under every draw.

    Args:
        task: whose metrics.
        sums_MS: see `cluster_sums`.
        sizes_M: likewise.
        names: of the S statistics.
        counts: how often each draw takes each cluster, in blocks of draws by (M) clusters.

    Returns:
        metric name -> (D,) float64.
    """
    means_DS = np.concatenate([block @ sums_MS / (block @ sizes_M)[:, None] for block in counts])
    return task.metrics({name: means_DS[:, index] for index, name in enumerate(names)})
