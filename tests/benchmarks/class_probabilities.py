"""What benchmarks of preferences read of result rows: test probabilities by condition, averaged over folds.

Shape letters: N comparisons, C classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from logitbank.preference import CLASSES
from logitbank.storage.results import Catalogue

Floats = NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Test:
    """Test comparisons, and what each condition said of them.

    Attributes:
        example_ids: of the N rows.
        clusters_N: the prompt's key of each.
        targets_NC: what people said.
        probabilities: (condition, `p` or `raw`) -> (N,3), the mean over folds; `raw` is before the temperature.
    """

    example_ids: list[str]
    clusters_N: NDArray[np.str_]
    targets_NC: Floats
    probabilities: dict[tuple[str, str], Floats]


def read_test(results: Path) -> Test:
    """The test rows of a study."""
    rows = Catalogue([results]).rows(
        "SELECT condition, example_id, any_value(cluster) AS cluster, any_value(gold) AS gold, "
        + ", ".join(f"avg(statistics['{kind}_{name}']) AS {kind}_{name}" for kind in ("p", "raw") for name in CLASSES)
        + " FROM predictions WHERE split = 'test' GROUP BY ALL ORDER BY condition, example_id"
    )
    by_condition: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        by_condition.setdefault(row["condition"], []).append(row)
    first, *others = by_condition.values()
    assert all([row["example_id"] for row in own] == [row["example_id"] for row in first] for own in others)
    golds = [json.loads(str(row["gold"])) for row in first]
    probabilities = {
        (condition, kind): np.array([[row[f"{kind}_{name}"] for name in CLASSES] for row in own], dtype=np.float64)
        for condition, own in by_condition.items()
        for kind in ("p", "raw")
    }
    targets_NC = np.array([[gold[name] for name in CLASSES] for gold in golds], dtype=np.float64)
    ids, clusters_N = [str(row["example_id"]) for row in first], np.array([row["cluster"] for row in first])
    return Test(ids, clusters_N, targets_NC, probabilities)


def log_losses(probabilities_NC: Floats, targets_NC: Floats) -> Floats:
    """(N,) nats."""
    return np.asarray(-(targets_NC * np.log(probabilities_NC.clip(1e-15, 1))).sum(axis=1))


def interval(differences_N: Floats, clusters_N: NDArray[np.str_]) -> tuple[float, float]:
    """95% percentile interval of the mean when whole clusters are resampled."""
    _, index_N = np.unique(clusters_N, return_inverse=True)
    sums, counts = np.bincount(index_N, weights=differences_N), np.bincount(index_N)
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
