"""Bootstrap intervals over examples: of a cell, of an average, of a difference on the same examples.

Shape legend: D draws, N examples of a cell, G cells of N examples each, S statistics of a task.

One draw resamples the N examples of a cell with replacement; the metric is then computed from the
means of the per-example statistics (Efron and Tibshirani, 1993, ch. 13, percentile interval). Span F1
resamples sentences, since a sentence is an example. All models meet the same draws of a cell, which
makes differences paired (ch. 8); different cells meet independent draws. Several seeds are averaged
within each draw. What the intervals leave out is the noise of training: the number of seeds says it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from storage.catalogue import Catalogue
from storage.errors import StoreError
from tasks import TASKS, Task

DRAWS = 1000
LEVEL = 0.95
GROUP_CELLS = 256  # cells resampled at once: D·G·S numbers

Cell = tuple[str, str, str, str, str, str]  # model, condition, setup, variant, task, language
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A 95% percentile interval, as fractions."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of its length."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference with this interval is resolved."""
        return self.low > 0 or self.high < 0


@dataclass
class Replicates:
    """Bootstrap replicates of every cell that has predictions.

    Attributes:
        by_cell: `(cell, metric) -> (D,) float64`.
        examples: `cell -> digest of its examples`, to see whether two cells can be paired.
    """

    by_cell: dict[tuple[Cell, str], FloatArray] = field(default_factory=dict)
    examples: dict[Cell, str] = field(default_factory=dict)

    def cell(self, cell: Cell, metric: str) -> Interval | None:
        """Interval of one cell; None where it has no predictions (published numbers)."""
        return self.average([cell], metric)

    def average(self, cells: Iterable[Cell], metric: str | Mapping[str, str]) -> Interval | None:
        """Interval of the mean over cells; None where one of them has no predictions."""
        found = [self.by_cell.get((cell, _metric(metric, cell))) for cell in cells]
        known = [values for values in found if values is not None]
        return interval(np.mean(known, axis=0)) if known and len(known) == len(found) else None

    def task_mean(self, cells: Iterable[Cell], metric: Mapping[str, str]) -> Interval | None:
        """Interval of the mean over tasks of their mean over languages."""
        by_task: dict[str, list[FloatArray]] = {}
        for cell in cells:
            values = self.by_cell.get((cell, metric[cell[4]]))
            if values is None:
                return None
            by_task.setdefault(cell[4], []).append(values)
        return interval(np.mean([np.mean(own, axis=0) for own in by_task.values()], axis=0)) if by_task else None

    def difference(self, pairs: Iterable[tuple[Cell, Cell]], metric: str) -> Interval | None:
        """Interval of the mean difference over pairs of cells that were asked the same examples.

        None where a cell has no predictions or the two were asked different examples.
        """
        differences = []
        for one, other in pairs:
            a, b = self.by_cell.get((one, metric)), self.by_cell.get((other, metric))
            if a is None or b is None or self.examples[one] != self.examples[other]:
                return None
            differences.append(a - b)
        return interval(np.mean(differences, axis=0)) if differences else None


def interval(replicates: FloatArray) -> Interval:
    """The percentile interval of (D,) bootstrap replicates."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def draw_counts(examples: int, *, draws: int = DRAWS) -> FloatArray:
    """How often each draw takes each example: (D,N) float64, every row summing to N.

    A function of N alone, so that all models meet the same draws.
    """
    counts = np.random.default_rng([20, examples]).multinomial(examples, np.full(examples, 1 / examples), size=draws)
    return counts.astype(np.float64)


def bootstrap_metrics(task: Task, statistics: FloatArray, names: Sequence[str], counts: FloatArray) -> dict[str, Any]:
    """Every metric of G cells under every draw.

    Args:
        task: whose metrics.
        statistics: (G,N,S) per-example numbers.
        names: of the S statistics.
        counts: (D,N), see `draw_counts`.

    Returns:
        metric name -> (D,G) float64.
    """
    cells, examples, width = statistics.shape
    flat = statistics.transpose(1, 0, 2).reshape(examples, cells * width)
    means = (counts @ flat / examples).reshape(len(counts), cells, width)
    return task.metrics({name: means[:, :, index] for index, name in enumerate(names)})


def load_replicates(catalogue: Catalogue, metrics: Sequence[str] = ()) -> Replicates:
    """Replicates of the primary metric, and of the named ones, of every cell that the tables show.

    Raises:
        StoreError: predictions of one task whose statistics have different names.
    """
    found = Replicates()
    for row in catalogue.rows("SELECT DISTINCT task FROM metrics WHERE method = 'generate' ORDER BY task"):
        if row["task"] in TASKS:
            _add_task(found, catalogue, TASKS[row["task"]], metrics)
    return found


def _add_task(found: Replicates, catalogue: Catalogue, task: Task, metrics: Sequence[str]) -> None:
    shown = f"""
        SELECT run, model, condition, setup, variant, language,
               row_number() OVER (ORDER BY run, language) - 1 AS segment
        FROM final_scores WHERE task = '{task.name}' AND is_primary AND method = 'generate'
    """
    names, statistics, segments, examples = _read_statistics(catalogue, task, shown)
    if not len(segments):
        return
    identity = {row["segment"]: row for row in catalogue.rows(shown)}
    order = np.lexsort((examples, segments))
    starts = np.flatnonzero(np.r_[True, np.diff(segments[order]) != 0])
    by_size: dict[int, list[tuple[Cell, Any]]] = {}
    for rows in np.split(order, starts[1:]):
        row = identity[int(segments[rows[0]])]
        cell = (row["model"], row["condition"], row["setup"], row["variant"], task.name, row["language"])
        by_size.setdefault(len(rows), []).append((cell, rows))
        digest = hashlib.sha256(examples[rows].tobytes()).hexdigest()
        if found.examples.setdefault(cell, digest) != digest:
            found.examples[cell] += digest  # its seeds were asked different examples: it pairs with no other
    sums: dict[tuple[Cell, str], tuple[FloatArray, int]] = {}
    for size, group in by_size.items():
        counts = draw_counts(size)
        for start in range(0, len(group), GROUP_CELLS):
            part = group[start : start + GROUP_CELLS]
            values = bootstrap_metrics(task, np.stack([statistics[rows] for _, rows in part]), names, counts)
            for index, (cell, _) in enumerate(part):
                shuffle = _independent_order(task.name, cell[5])
                for metric in {task.primary_metric, *metrics} & values.keys():
                    total, seeds = sums.get((cell, metric), (np.zeros(DRAWS), 0))
                    sums[cell, metric] = (total + values[metric][shuffle, index], seeds + 1)
    for key, (total, seeds) in sums.items():
        found.by_cell[key] = total / seeds


def _read_statistics(
    catalogue: Catalogue, task: Task, shown: str
) -> tuple[list[str], FloatArray, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Names of the statistics, their values (rows, S), and of each row its segment and its example's hash."""
    source = f"FROM predictions JOIN ({shown}) USING (run, language) WHERE task = '{task.name}' AND method = 'generate'"
    keys = catalogue.rows(f"SELECT DISTINCT map_keys(statistics) AS names {source}")
    if len(keys) > 1:
        raise StoreError(f"predictions: the statistics of {task.name} have different names in different files")
    names = keys[0]["names"] if keys else []
    values = "".join(f", statistics['{name}'] AS s{index}" for index, name in enumerate(names))
    answer = catalogue.query(f"SELECT segment, hash(example_id) AS example{values} {source}")
    columns = [_numpy(answer[f"s{index}"], np.dtype(np.float64)) for index in range(len(names))]
    statistics = np.stack(columns, axis=1) if columns else np.zeros((0, 0))
    segments = _numpy(answer["segment"], np.dtype(np.int64))
    return names, statistics, segments, _numpy(answer["example"], np.dtype(np.uint64))


def _numpy(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The numbers of a column without nulls; pyarrow's own way imports pandas, which takes longer than this."""
    if column.type != pa.from_numpy_dtype(dtype) or column.null_count:
        raise StoreError(f"predictions: expected {dtype} without nulls, got {column.type} with {column.null_count}")
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


@functools.cache
def _independent_order(task: str, language: str) -> Any:
    """Order of the draws for one cell of the grid: the same for all models, unrelated between cells."""
    seed = int.from_bytes(hashlib.sha256(f"{task}/{language}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(DRAWS)


def _metric(metric: str | Mapping[str, str], cell: Cell) -> str:
    return metric if isinstance(metric, str) else metric[cell[4]]
