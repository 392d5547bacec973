"""Per-example statistics of the cells that tables show, as the results hold them.

Shape legend: N examples of a segment, S statistics of a task.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from logitbank.errors import StoreError
from logitbank.evaluation.report.labels import KEY, Row
from logitbank.evaluation.report.unknown_tasks import Scored
from logitbank.storage.results import Catalogue
from logitbank.tasks.scoring.likelihood import LikelihoodScores

FORCED = "teacher_forced"  # the method of what is scored by likelihood
BOOTSTRAPPED = f"method IN ('generate', '{FORCED}')"


@dataclass(frozen=True)
class Segment:
    """(N,S) statistics in the order of the examples' hashes, and a digest of these."""

    numbers: np.ndarray[Any, np.dtype[np.float64]]
    digest: str


def segments_of(catalogue: Catalogue, task: Scored) -> list[Row]:
    """The examples of one run in one language: how many, the names of their statistics, the series they belong to.

    Raises:
        StoreError: the statistics of some files have other names; those of conversations may, beside a teacher's.
    """
    key = f"{', '.join(KEY)}, language"
    own = f"task = '{task.name}' AND is_primary AND {BOOTSTRAPPED}"
    answer = catalogue.query(
        f"""
        WITH shown AS (
            SELECT run, {key}, step, method, row_number() OVER (ORDER BY run, language) - 1 AS segment,
                   (run, language) IN (SELECT (run, language) FROM final_scores WHERE {own}) AS is_final,
                   min(step) OVER (PARTITION BY {key}) < max(step) OVER (PARTITION BY {key}) AS has_steps
            FROM scores WHERE {own}),
        sizes AS (
            SELECT run, language, method, sum(examples)::BIGINT AS size,
                   list_distinct(flatten(list(names))) AS kinds
            FROM example_statistics WHERE task = '{task.name}' GROUP BY run, language, method),
        compared AS (
            SELECT run, language, any_value(against) AS against FROM metrics
            WHERE task = '{task.name}' GROUP BY run, language)
        SELECT *, kinds[1] AS names FROM shown JOIN sizes USING (run, language, method)
        LEFT JOIN compared USING (run, language) ORDER BY segment
        """
    )
    columns = [column.to_pylist() for column in answer.columns]
    rows: list[Row] = [dict(zip(answer.column_names, row, strict=True)) for row in zip(*columns, strict=True)]
    kinds = {tuple(names) for row in rows for names in row["kinds"]}
    if any(len(row["kinds"]) > 1 for row in rows) or (len(kinds) > 1 and not isinstance(task, LikelihoodScores)):
        raise StoreError(f"predictions: the statistics of {task.name} have different names in different files")
    return rows


def read_statistics(catalogue: Catalogue, task: Scored, segments: Sequence[Row]) -> dict[int, Segment]:
    """The statistics of all examples of the given segments."""
    runs = ", ".join("'" + run.replace("'", "''") + "'" for run in sorted({row["run"] for row in segments}))
    answer = catalogue.query(
        "SELECT run, language, hashes, numbers FROM example_statistics "
        f"WHERE task = '{task.name}' AND {BOOTSTRAPPED} AND run IN ({runs})"
    )
    hashes = _lists(answer["hashes"], np.dtype(np.uint64))
    numbers = _lists(answer["numbers"], np.dtype(np.float64))
    places: dict[tuple[str, str], list[int]] = {}
    for place, where in enumerate(zip(answer["run"].to_pylist(), answer["language"].to_pylist(), strict=True)):
        places.setdefault(where, []).append(place)
    found = {}
    for row in segments:
        own = places[row["run"], row["language"]]
        if len(own) == 1:
            hashed, values = hashes[own[0]], numbers[own[0]].reshape(row["size"], -1)
        else:  # of several files
            hashed = np.concatenate([hashes[place] for place in own])
            order = np.argsort(hashed, kind="stable")
            hashed = hashed[order]
            values = np.concatenate([numbers[place] for place in own]).reshape(row["size"], -1)[order]
        found[row["segment"]] = Segment(values, hashlib.sha256(hashed.tobytes()).hexdigest())
    return found


def _lists(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> list[np.ndarray[Any, Any]]:
    """The numbers of each list of a column; pyarrow's own way imports pandas, which takes longer than this."""
    found: list[np.ndarray[Any, Any]] = []
    for chunk in column.chunks:
        values = chunk.values
        if values.type != pa.from_numpy_dtype(dtype) or values.null_count or chunk.null_count:
            raise StoreError(f"predictions: expected {dtype} without nulls, got {values.type} with {values.null_count}")
        start = values.offset * dtype.itemsize
        flat = np.frombuffer(values.buffers()[1], dtype, len(values), start) if len(values) else np.zeros(0, dtype)
        offsets = np.frombuffer(chunk.buffers()[1], np.int32, len(chunk) + 1, 4 * chunk.offset)
        found += [flat[start:end] for start, end in itertools.pairwise(offsets.tolist())]
    return found
