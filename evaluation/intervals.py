"""Bootstrap intervals over examples: of a cell, of an average, of a difference on the same examples.

Shape legend: D draws, N examples of a cell, G cells of N examples each, S statistics of a task.

One draw resamples the N examples of a cell with replacement; the metric is then computed from the
means of the per-example statistics (Efron and Tibshirani, 1993, ch. 13, percentile interval). Span F1
resamples sentences, since a sentence is an example. All models meet the same draws of a cell, which
makes differences paired (ch. 8); different cells meet independent draws. Several seeds are averaged
within each draw. What the intervals leave out is the noise of training: the number of seeds says it.
"""

from __future__ import annotations

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
        examples: `cell -> digest of the example ids`, to see whether two cells can be paired.
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
    answer = catalogue.query(
        f"""
        SELECT f.model, f.condition, f.setup, f.variant, f.language, p.run, p.example_id, p.statistics
        FROM predictions AS p
        JOIN final_scores AS f ON f.run = p.run AND f.task = p.task AND f.language = p.language
        WHERE p.task = '{task.name}' AND f.is_primary AND p.method = 'generate' AND f.method = 'generate'
        """
    ).combine_chunks()
    if not answer.num_rows:
        return
    names, statistics = _statistics(task, answer["statistics"])
    wanted = [task.primary_metric, *metrics]
    segments = _segments(answer, task.name)
    shuffles: dict[str, Any] = {}
    sums: dict[tuple[Cell, str], tuple[FloatArray, int]] = {}
    by_size: dict[int, list[tuple[Cell, str, Any]]] = {}
    for segment in segments:
        by_size.setdefault(len(segment[2]), []).append(segment)
    for size, group in by_size.items():
        counts = draw_counts(size)
        for start in range(0, len(group), GROUP_CELLS):
            part = group[start : start + GROUP_CELLS]
            values = bootstrap_metrics(task, np.stack([statistics[rows] for _, _, rows in part]), names, counts)
            for index, (cell, digest, _) in enumerate(part):
                language = cell[5]
                if language not in shuffles:
                    shuffles[language] = _independent_order(task.name, language)
                for metric in set(wanted) & values.keys():
                    total, seeds = sums.get((cell, metric), (np.zeros(DRAWS), 0))
                    sums[cell, metric] = (total + values[metric][shuffles[language], index], seeds + 1)
                known = found.examples.setdefault(cell, digest)
                if known != digest:
                    found.examples[cell] = f"{known} {digest}"  # seeds asked different examples: pairs with none
    for key, (total, seeds) in sums.items():
        found.by_cell[key] = total / seeds


def _statistics(task: Task, column: pa.ChunkedArray) -> tuple[list[str], FloatArray]:
    """Names of the statistics and their values (rows, S), from a column of maps."""
    maps = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    maps = pa.concat_arrays(maps.chunks) if isinstance(maps, pa.ChunkedArray) else maps
    rows = len(maps)
    offsets = np.asarray(maps.offsets)
    keys, values = maps.keys, np.asarray(maps.items, dtype=np.float64)
    width = int(offsets[1] - offsets[0])
    codes = np.asarray(keys.dictionary_encode().indices)
    if np.any(np.diff(offsets) != width) or np.any(codes.reshape(rows, width) != codes[:width]):
        raise StoreError(f"predictions: the statistics of {task.name} have different names in different files")
    return keys[:width].to_pylist(), values.reshape(rows, width)


def _segments(answer: pa.Table, task: str) -> list[tuple[Cell, str, Any]]:
    """Rows of each (run, language), in the order of their example ids, with a digest of those ids."""
    codes = {name: _codes(answer[name]) for name in ("run", "language", "example_id")}
    order = np.lexsort((codes["example_id"], codes["language"], codes["run"]))
    run, language = codes["run"][order], codes["language"][order]
    starts = np.flatnonzero(np.r_[True, (np.diff(run) != 0) | (np.diff(language) != 0)])
    first = answer.take(pa.array(order[starts]))
    identity = [first[name].to_pylist() for name in ("model", "condition", "setup", "variant", "language")]
    segments = []
    for index, rows in enumerate(np.split(order, starts[1:])):
        model, condition, setup, variant, own = (column[index] for column in identity)
        digest = hashlib.sha256(codes["example_id"][rows].astype("<i8").tobytes()).hexdigest()
        segments.append(((model, condition, setup, variant, task, own), digest, rows))
    return segments


def _codes(column: pa.ChunkedArray) -> Any:
    """Integers that order as the texts do."""
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    encoded = array.dictionary_encode()
    ranks = np.argsort(np.argsort(np.asarray(encoded.dictionary.to_pylist(), dtype=object)))
    return ranks[np.asarray(encoded.indices)]


def _independent_order(task: str, language: str) -> Any:
    """Order of the draws for one cell of the grid: the same for all models, unrelated between cells."""
    seed = int.from_bytes(hashlib.sha256(f"{task}/{language}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(DRAWS)


def _metric(metric: str | Mapping[str, str], cell: Cell) -> str:
    return metric if isinstance(metric, str) else metric[cell[4]]
