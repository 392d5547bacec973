"""How far class probabilities depend on which answer comes first, next to what people preferred.

Shape legend: M prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from logitbank.evaluation.report.class_scores import places_of, row_labels, scored_series
from logitbank.evaluation.report.class_table import where
from logitbank.evaluation.report.clusters import cluster_sums
from logitbank.evaluation.report.intervals import Interval, all_counts, interval
from logitbank.evaluation.report.labels import Row, key_of
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.statistics import CLASSIFIED
from logitbank.evaluation.report.table import UNRESOLVED, Table, difference_with_interval, percent
from logitbank.preference import CLASSES
from logitbank.storage.results import SERIES

A, B, _ = CLASSES
ORDERS = {"given": "as given", "swapped": "swapped", "both": "both orders"}
HEADER = ("condition", *ORDERS.values(), "labels", "first place", "first choice changes (%)")
NOTE = (
    "Mean P(A) − P(B) in points, where A is always the answer that the file calls A. As given: A comes first. "
    "Swapped: B comes first. Both orders: the average of the two, as submitted. Labels: what people said. First "
    "place: half of as given minus swapped, what an answer gains by standing first, with an interval by a bootstrap "
    f"over prompts; {UNRESOLVED}: the interval contains zero, so no position bias is resolved. First choice changes: "
    "the share of comparisons whose likeliest class depends on the order. —: evaluated in one order only "
    "(evaluation.swap_average)."
)


def position_tables(results: Results) -> list[Table]:
    """One table for each task and split that is scored by class probabilities."""
    scored = scored_series(results)
    if not scored:
        return []
    found = {(key_of(row), row["task"], row["language"], row["split"]): row for row in _biases(results)}
    tables = []
    for place in places_of(scored):
        own = [one for one in scored if one.place == place]
        rows = [
            [label, *_texts(found[key_of(one.row), *place])]
            for label, one in zip(row_labels(own), own, strict=True)
            if (key_of(one.row), *place) in found
        ]
        if rows:
            tables.append(Table(f"Position bias: {where(place)}", HEADER, rows, [NOTE]))
    return tables


def _texts(row: Row) -> list[str]:
    given, swapped = row["given"], row["swapped"]
    first = None if given is None or swapped is None else (given - swapped) / 2
    leads = [percent(value, signed=True) for value in (given, swapped, row["both"], row["labels"])]
    found = None if first is None else _interval(row["gains"], row["prompts"])
    gained = difference_with_interval(percent(first, signed=True), first, found)
    return [*leads, gained, percent(row["changes"])]


def _interval(gains: Sequence[float], prompts: Sequence[int]) -> Interval:
    """Of the mean gain, prompts being resampled with all their comparisons."""
    sums_M1, sizes_M = cluster_sums(np.array(gains)[:, None], np.array(prompts, dtype=np.uint64))
    return interval(np.concatenate([block @ sums_M1[:, 0] / (block @ sizes_M) for block in all_counts(len(sizes_M))]))


def _biases(results: Results) -> Sequence[Row]:
    """One row for each series and place, the mean over all predictions of its students."""
    choice = "list_position({0}, list_max({0}))"
    given, swapped = (
        "[" + ", ".join(f"s['{order}_{name}']" for name in CLASSES) + "]" for order in ("given", "swapped")
    )
    return results.catalogue.rows(
        f"""
        WITH shown AS (
            SELECT {", ".join(f"f.{name}" for name in SERIES.split(", "))}, f.task, f.language, f.split,
                   p.statistics AS s, p.gold::JSON AS gold,
                   hash(coalesce(p.cluster, p.example_id)) AS prompt
            FROM predictions AS p JOIN final_scores AS f USING (run, task, language)
            WHERE f.is_primary AND f.method = '{CLASSIFIED}' AND p.method = '{CLASSIFIED}')
        SELECT {SERIES}, task, language, split,
               avg(coalesce(s['given_{A}'] - s['given_{B}'], s['p_{A}'] - s['p_{B}'])) AS given,
               avg(s['swapped_{A}'] - s['swapped_{B}']) AS swapped,
               avg(s['p_{A}'] - s['p_{B}']) FILTER (s['swapped_{A}'] IS NOT NULL) AS both,
               avg((gold->>'{A}')::DOUBLE - (gold->>'{B}')::DOUBLE) AS labels,
               avg(CASE WHEN s['swapped_{A}'] IS NOT NULL
                        THEN ({choice.format(given)} <> {choice.format(swapped)})::INT END) AS changes,
               list(prompt) AS prompts,
               list((s['given_{A}'] - s['given_{B}'] - s['swapped_{A}'] + s['swapped_{B}']) / 2) AS gains
        FROM shown GROUP BY ALL
        """
    )
