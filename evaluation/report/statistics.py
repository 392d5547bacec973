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
from logitbank.evaluation.report.labels import KEY, Row, key_of
from logitbank.evaluation.report.unknown_tasks import Scored
from logitbank.storage.results import Catalogue
from logitbank.tasks.scoring.likelihood import LikelihoodScores

FORCED = "teacher_forced"  # the method of what is scored by likelihood
CLASSIFIED = "classify"  # the method of what is scored by class probabilities
BOOTSTRAPPED = f"method IN ('generate', '{FORCED}', '{CLASSIFIED}')"
HELD_OUT = "held_out"  # the split of which each student has a fold of its own

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Segment:
    """The statistics of the examples of a segment.

    Attributes:
        numbers: (N,S), in the order of the examples' hashes.
        clusters: (N,) uint64, examples of one cluster having one number; None if each is on its own.
        digest: of hashes and clusters: equal where the same examples meet the same draws.
    """

    numbers: np.ndarray[Any, np.dtype[np.float64]]
    clusters: np.ndarray[Any, np.dtype[np.uint64]] | None
    digest: str

    @property
    def units(self) -> int:
        """How many are resampled: clusters, or examples."""
        return len(self.numbers) if self.clusters is None else len(np.unique(self.clusters))


def segments_of(catalogue: Catalogue, task: Scored) -> list[Row]:
    """The examples of one run in one language: how many, the names of their statistics, the series they belong to.

    The held-out folds of one seed are one segment, of several `runs`.

    Raises:
        StoreError: the statistics of some files have other names; those of conversations may, beside a teacher's, and
            those of classes, which may be scored in both orders.
    """
    key = f"{', '.join(KEY)}, language"
    own = f"task = '{task.name}' AND is_primary AND {BOOTSTRAPPED}"
    answer = catalogue.query(
        f"""
        WITH shown AS (
            SELECT run, {key}, step, seed, split, held_out_fold, method,
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
        LEFT JOIN compared USING (run, language) ORDER BY run, language
        """
    )
    columns, names = [column.to_pylist() for column in answer.columns], answer.column_names
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    kinds = {tuple(kind) for row in rows for kind in row["kinds"]}
    vary = isinstance(task, LikelihoodScores) or all(row["method"] == CLASSIFIED for row in rows)
    if any(len(row["kinds"]) > 1 for row in rows) or (len(kinds) > 1 and not vary):
        raise StoreError(f"predictions: the statistics of {task.name} have different names in different files")
    pooled = _pooled(rows)
    for segment, row in enumerate(pooled):
        row["segment"] = segment
    return list(pooled)


def _pooled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their `runs`: one, but the held-out folds of each seed, which are put together."""
    found = []
    folds: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        row["runs"] = [row["run"]]
        if row["split"] != HELD_OUT or row["held_out_fold"] is None:
            found.append(row)
        elif row["is_final"]:
            folds.setdefault((*key_of(row), row["language"], row["seed"], *row["names"]), []).append(row)
    for own in folds.values():
        together = {"runs": [row["run"] for row in own], "size": sum(row["size"] for row in own), "has_steps": False}
        found.append({**own[0], **together})
    return found


def read_statistics(catalogue: Catalogue, task: Scored, segments: Sequence[Row]) -> dict[int, Segment]:
    """The statistics of all examples of the given segments."""
    answer = catalogue.query(
        "SELECT run, language, hashes, clusters, numbers FROM example_statistics "
        f"WHERE task = '{task.name}' AND {BOOTSTRAPPED} AND run IN (SELECT unnest($runs))",
        {"runs": sorted({run for row in segments for run in row["runs"]})},
    )
    hashes, numbers = (lists_of(answer[name], kind) for name, kind in (("hashes", np.uint64), ("numbers", np.float64)))
    clusters = lists_of(answer["clusters"], np.uint64)
    places: dict[tuple[str, str], list[int]] = {}
    for place, where in enumerate(zip(answer["run"].to_pylist(), answer["language"].to_pylist(), strict=True)):
        places.setdefault(where, []).append(place)
    found = {}
    digests: dict[bytes, str] = {}  # most segments of a language have the same examples
    for row in segments:
        own = [place for run in row["runs"] for place in places[run, row["language"]]]
        if len(own) == 1:
            hashed, values, of = (
                array_of(hashes[own[0]]),
                array_of(numbers[own[0]]).reshape(row["size"], -1),
                clusters[own[0]],
            )
        else:  # of several files
            hashed = np.concatenate([array_of(hashes[place]) for place in own])
            order = np.argsort(hashed, kind="stable")
            values = np.concatenate([array_of(numbers[place]) for place in own]).reshape(row["size"], -1)[order]
            of = _joined([array_of(hashes[place]) for place in own], [clusters[place] for place in own], order)
            hashed = hashed[order]
        asked = hashed.tobytes() if of is None else hashed.tobytes() + of.tobytes()
        if asked not in digests:
            digests[asked] = hashlib.sha256(asked).hexdigest()
        found[row["segment"]] = Segment(values, of, digests[asked])
    return found


def _joined(hashes: Sequence[Array], clusters: Sequence[Array | None], order: Array) -> Array | None:
    """Clusters of several files; an example of a file without any is a cluster of its own."""
    if all(own is None for own in clusters):
        return None
    alike = [hashed if own is None else own for hashed, own in zip(hashes, clusters, strict=True)]
    return np.asarray(np.concatenate(alike)[order])


def lists_of(column: pa.ChunkedArray, kind: type[np.generic] | type[float]) -> list[Array | None]:
    """The numbers of each list of a column, None for a null; pyarrow's own ways import pandas or all its functions."""
    found: list[Array | None] = []
    dtype = np.dtype(kind)
    for chunk in column.chunks:
        values = chunk.values
        if values.type != pa.from_numpy_dtype(dtype) or values.null_count:
            raise StoreError(f"predictions: expected {dtype} without nulls, got {values.type} with {values.null_count}")
        start = values.offset * dtype.itemsize
        flat = np.frombuffer(values.buffers()[1], dtype, len(values), start) if len(values) else np.zeros(0, dtype)
        offsets = np.frombuffer(chunk.buffers()[1], np.int32, len(chunk) + 1, 4 * chunk.offset)
        lists: list[Array | None] = [flat[start:end] for start, end in itertools.pairwise(offsets.tolist())]
        if chunk.null_count:
            bits = np.unpackbits(np.frombuffer(chunk.buffers()[0], np.uint8), bitorder="little")[chunk.offset :]
            lists = [own if there else None for own, there in zip(lists, bits[: len(lists)].tolist(), strict=True)]
        found += lists
    return found


def array_of(numbers: Array | None) -> Array:
    """A list that is not null."""
    if numbers is None:
        raise StoreError("predictions: expected the statistics of every example, but some have none")
    return numbers
