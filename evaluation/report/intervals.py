"""Bootstrap intervals over examples: of a cell, of an average, of a difference on the same examples.

Shape legend: D draws, N examples of a cell, G cells of N examples each, S statistics of a task.

One draw resamples the N examples of a cell with replacement; the metric is then computed from the
means of the per-example statistics (Efron and Tibshirani, 1993, ch. 13, percentile interval). Span F1
resamples sentences, since a sentence is an example; comparisons are resampled by prompt (`clusters`).
All models meet the same draws of a cell, which makes differences paired (ch. 8); different cells meet
independent draws. Several seeds are averaged within each draw. What the intervals leave out is the noise
of training: the number of seeds says it.

Resampling cannot give what was not seen. A cell in which every answer is right, or none, always gives
the same value: alone and in averages it takes draws of its rate under Jeffreys' prior, Beta(N + 1/2, 1/2),
instead (Brown, Cai and DasGupta, 2001, Statistical Science 16). Two cells with equal or nearly equal
answers differ on too few examples to resample: their difference is drawn as if half an example more had
been won by each side, which is Jeffreys' prior on the two kinds of discordant pairs. Weights are Dirichlet's,
as in the Bayesian bootstrap (Rubin, 1981, Annals of Statistics 9). The half examples are whole wins and
losses for graded scores and span F1 too, and vanish among many examples. What is scored by likelihood or class
probabilities needs none of this, but for the accuracy of classes: two models that differ at all differ on every
example.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from logitbank.evaluation.report.clusters import bootstrap_clusters, cluster_sums
from logitbank.evaluation.report.labels import Row, key_of
from logitbank.evaluation.report.quantiles import gamma_quantiles
from logitbank.evaluation.report.statistics import (
    BOOTSTRAPPED,
    CLASSIFIED,
    FORCED,
    Segment,
    read_statistics,
    segments_of,
)
from logitbank.evaluation.report.unknown_tasks import Scored, scored_task
from logitbank.storage.results import Catalogue
from logitbank.tasks.scoring.likelihood import OF_A_TEACHER

DRAWS = 1000
LEVEL = 0.95
GROUP_CELLS = 256  # cells resampled at once: D·G·S numbers
MOST_COUNTS = 2**23  # of D·N, made at once
EXAMPLE_BYTES = 64  # that reading takes of an example's statistics

CellKey = tuple[Any, ...]  # the columns of `KEY`, then task and language
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Key = TypeVar("Key")


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
        sizes: `cell -> N`, or the number of clusters.
        by_step: `(cell, step) -> (D,) float64` of the primary metric, where a cell was evaluated at several
            training steps.
        continuous: the cells whose scores no two models share.
        values: `(cell, metric) -> the metric itself`, of class probabilities.
    """

    by_cell: dict[tuple[CellKey, str], FloatArray] = field(default_factory=dict)
    examples: dict[CellKey, str] = field(default_factory=dict)
    sizes: dict[CellKey, int] = field(default_factory=dict)
    by_step: dict[tuple[CellKey, int], FloatArray] = field(default_factory=dict)
    continuous: set[CellKey] = field(default_factory=set)
    values: dict[tuple[CellKey, str], float] = field(default_factory=dict)

    def note(self, cell: CellKey, digest: str, size: int, *, continuous: bool = False) -> None:
        """Remember what a cell was asked, by one of its seeds or steps."""
        if self.examples.setdefault(cell, digest) != digest:
            self.examples[cell] += digest  # its seeds were asked different examples: it pairs with no other
        self.sizes[cell] = size
        if continuous:
            self.continuous.add(cell)

    def cell(self, cell: CellKey, metric: str) -> Interval | None:
        """Interval of one cell; None if it has no predictions (published numbers)."""
        return self.average([cell], metric)

    def average(self, cells: Iterable[CellKey], metric: str | Mapping[str, str]) -> Interval | None:
        """Interval of the mean over cells; None if one of them has no predictions."""
        return _interval_of_mean([self._alone(cell, _metric(metric, cell)) for cell in cells])

    def task_mean(self, cells: Iterable[CellKey], metric: Mapping[str, str]) -> Interval | None:
        """Interval of the mean over tasks of their mean over languages."""
        by_task: dict[str, list[FloatArray]] = {}
        for cell in cells:
            values = self._alone(cell, metric[cell[-2]])
            if values is None:
                return None
            by_task.setdefault(cell[-2], []).append(values)
        return _interval_of_mean([np.mean(own, axis=0) for own in by_task.values()])

    def contrast(
        self, cells: Iterable[CellKey], others: Iterable[CellKey], metric: Mapping[str, str]
    ) -> Interval | None:
        """Interval of the mean over cells minus the mean over others, which were asked other examples."""
        sides = [[self._alone(cell, metric[cell[-2]]) for cell in side] for side in (cells, others)]
        known = [[values for values in side if values is not None] for side in sides]
        if not all(known) or any(len(a) != len(b) for a, b in zip(sides, known, strict=True)):
            return None
        return interval(np.mean(known[0], axis=0) - np.mean(known[1], axis=0))

    def at_step(self, cells: Iterable[CellKey], step: int) -> Interval | None:
        """Interval of the mean over cells of the primary metric at one training step."""
        found = [(cell, self.by_step.get((cell, step))) for cell in cells]
        return _interval_of_mean([None if v is None else spread(v, self.sizes[cell], cell) for cell, v in found])

    def _alone(self, cell: CellKey, metric: str) -> FloatArray | None:
        values = self.by_cell.get((cell, metric))
        return None if values is None else spread(values, self.sizes[cell], cell)

    def difference(self, pairs: Iterable[tuple[CellKey, CellKey]], metric: str) -> Interval | None:
        """Interval of the mean difference over pairs of cells that were asked the same examples.

        None if a cell has no predictions or the two were asked different examples.
        """
        differences = []
        for one, other in pairs:
            a, b = self.by_cell.get((one, metric)), self.by_cell.get((other, metric))
            if a is None or b is None or self.examples[one] != self.examples[other]:
                return None
            resampled = one in self.continuous and metric != "accuracy"
            differences.append(a - b if resampled else with_unseen_pairs(a - b, self.sizes[one], one))
        return interval(np.mean(differences, axis=0)) if differences else None


def _interval_of_mean(replicates: Sequence[FloatArray | None]) -> Interval | None:
    known = [values for values in replicates if values is not None]
    return interval(np.mean(known, axis=0)) if known and len(known) == len(replicates) else None


def interval(replicates: FloatArray) -> Interval:
    """The percentile interval of (D,) bootstrap replicates."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def spread(replicates: FloatArray, examples: int, cell: CellKey) -> FloatArray:
    """(D,) replicates of one cell; Jeffreys' where all are 0 or all are 1, in the cell's own order."""
    value = replicates[0]
    if value not in (0.0, 1.0) or np.any(replicates != value):
        return replicates
    misses = _rare_misses(examples)[_independent_order(cell[-2], cell[-1])]
    return misses if value == 0.0 else 1.0 - misses


@functools.cache
def _rare_misses(examples: int) -> FloatArray:
    """D equally likely values of a rate of which none was seen in N trials, in ascending order."""
    from scipy.special import betaincinv  # takes longer to import than most tables to print

    return np.asarray(betaincinv(0.5, examples + 0.5, (np.arange(DRAWS) + 0.5) / DRAWS))


def with_unseen_pairs(differences: FloatArray, examples: int, cell: CellKey) -> FloatArray:
    """(D,) paired differences of one cell, with half an example more won and half an example more lost.

    Without them two cells with the same answers on three examples would differ by 0 ±0.
    """
    seen, won, lost = _pair_weights(examples)[:, _independent_order(cell[-2], cell[-1], "pairs")]
    return np.asarray((seen * differences + won - lost) / (seen + won + lost))


@functools.cache
def _pair_weights(examples: int) -> FloatArray:
    """(3,D) weights of the pairs that were seen, and of those that one and the other side won unseen.

    Gamma(N), Gamma(1/2) and Gamma(1/2): divided by their sum they are Dirichlet's. The draws are an even lattice
    (a Kronecker sequence), and every second one swaps the sides, so that their quantiles are nearly exact.
    """
    ratio = 1.2207440846057596  # the root of x^4 = x + 1, which spreads points in three dimensions best
    places = (0.5 + np.outer(np.arange(1, DRAWS // 2 + 1), [ratio**-1, ratio**-2, ratio**-3])) % 1
    seen, won, lost = (gamma_quantiles(shape, places[:, i]) for i, shape in enumerate((examples, 0.5, 0.5)))
    return np.array([np.tile(seen, 2), np.append(won, lost), np.append(lost, won)])


def draw_counts(examples: int, *, draws: int = DRAWS) -> FloatArray:
    """How often each draw takes each example: (D,N) float64, every row summing to N.

    A function of N alone, so that all models meet the same draws.
    """
    return _draw(_generator(examples), examples, draws)


def _generator(examples: int) -> np.random.Generator:
    return np.random.default_rng([20, examples])


def _draw(generator: np.random.Generator, examples: int, draws: int) -> FloatArray:
    return generator.multinomial(examples, np.full(examples, 1 / examples), size=draws).astype(np.float64)


def bootstrap_metrics(task: Scored, statistics: FloatArray, names: Sequence[str], counts: FloatArray) -> dict[str, Any]:
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
    if _summed_exactly(statistics):
        means = (_means_of_whole_numbers(statistics[:, :, index], counts) for index in range(width))
        return task.metrics(dict(zip(names, means, strict=True)))
    flat = statistics.transpose(1, 0, 2).reshape(examples, cells * width)
    means = (counts @ flat / examples).reshape(len(counts), cells, width)
    return task.metrics({name: means[:, :, index] for index, name in enumerate(names)})


def _summed_exactly(statistics: FloatArray) -> bool:
    """Whether all are whole numbers, whose sums under any draw a 32-bit float holds."""
    most = np.abs(statistics).max(initial=0) * statistics.shape[1]
    return bool(most < 2 ** (1 + np.finfo(np.float32).nmant) and np.array_equal(statistics, np.rint(statistics)))


def _means_of_whole_numbers(statistic_GN: FloatArray, counts: FloatArray) -> FloatArray:
    """(D,G) means under every draw: the same bits as in double precision, for half of the arithmetic or none."""
    cells, examples = statistic_GN.shape
    first = statistic_GN[0, 0]
    if np.all(statistic_GN == first):
        return np.broadcast_to(first, (len(counts), cells))
    sums_GD = statistic_GN.astype(np.float32) @ counts.T.astype(np.float32)
    return (sums_GD.astype(np.float64) / examples).T


def replicate_name(row: Row) -> str:
    """What replicates of a row's metric are kept under: comparisons with two teachers are two metrics."""
    return " ".join(filter(None, (row["metric"], row.get("against"))))


def load_replicates(catalogue: Catalogue, metrics: Sequence[str] = ()) -> Replicates:
    """Replicates of the primary metric, and of the named ones, of every cell that the tables show.

    Raises:
        StoreError: predictions of one task whose statistics have different names.
    """
    found = Replicates()
    for row in catalogue.rows(f"SELECT DISTINCT task FROM metrics WHERE {BOOTSTRAPPED} ORDER BY task"):
        if (task := scored_task(catalogue, row["task"])) is not None:
            _add_task(found, catalogue, task, metrics)
    return found


def _add_task(found: Replicates, catalogue: Catalogue, task: Scored, metrics: Sequence[str]) -> None:
    alike: dict[tuple[int, tuple[str, ...]], list[Row]] = {}
    for row in segments_of(catalogue, task):
        alike.setdefault((row["size"], tuple(row["names"])), []).append(row)
    final = _SeedMeans(found.by_cell)
    stepwise = _SeedMeans(found.by_step)
    measured: dict[tuple[CellKey, str], list[float]] = {}
    for batch in _batches(alike, catalogue.memory.rows):
        statistics = read_statistics(catalogue, task, [row for part in batch for row in part])
        for part in batch:
            segments = [statistics[row["segment"]] for row in part]
            drawn = _bootstrap(task, segments, part[0]["names"], {task.primary_metric, *metrics})
            for place, (row, segment) in enumerate(zip(part, segments, strict=True)):
                cell = (*key_of(row), task.name, row["language"])
                continuous = row["method"] in (FORCED, CLASSIFIED)
                found.note(cell, segment.digest, segment.units, continuous=continuous)
                if row["has_steps"] and row["step"] is not None:
                    stepwise.add((cell, row["step"]), drawn[task.primary_metric][place], cell)
                if row["is_final"]:
                    for metric, values_GD in drawn.items():
                        against = row["against"] if metric in OF_A_TEACHER else None
                        name = replicate_name({"metric": metric, "against": against})
                        final.add((cell, name), values_GD[place], cell)
                    if row["method"] == CLASSIFIED:
                        means = dict(zip(row["names"], segment.numbers.mean(axis=0), strict=True))
                        for metric, value in task.metrics(means).items():
                            measured.setdefault((cell, metric), []).append(float(value))
    final.finish()
    stepwise.finish()
    found.values.update({key: float(np.mean(values)) for key, values in measured.items()})


def _batches(alike: Mapping[tuple[int, tuple[str, ...]], Sequence[Row]], limit: int) -> Iterator[list[Sequence[Row]]]:
    """Groups of segments of one size with the same statistics, as many at a time as fit into `limit` bytes."""
    batch: list[Sequence[Row]] = []
    held = 0
    for (size, _), rows in alike.items():
        together = max(1, min(GROUP_CELLS, limit // (size * EXAMPLE_BYTES)))
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            more = size * len(part) * EXAMPLE_BYTES
            if batch and held + more > limit:
                yield batch
                batch, held = [], 0
            batch.append(part)
            held += more
    if batch:
        yield batch


def _bootstrap(
    task: Scored, segments: Sequence[Segment], names: Sequence[str], wanted: Collection[str]
) -> dict[str, FloatArray]:
    """The wanted metrics of G segments of one size under all draws: (G,D); in blocks where they are too many."""
    if any(segment.clusters is not None for segment in segments):
        each = [_resampled(task, segment, names, wanted) for segment in segments]
        return {metric: np.stack([drawn[metric] for drawn in each]) for metric in each[0]}
    statistics = np.stack([segment.numbers for segment in segments])
    parts = [bootstrap_metrics(task, statistics, names, counts) for counts in all_counts(statistics.shape[1])]
    return {
        metric: np.ascontiguousarray(np.concatenate([part[metric] for part in parts]).T if parts[1:] else first.T)
        for metric, first in parts[0].items()
        if metric in wanted
    }


def _resampled(task: Scored, segment: Segment, names: Sequence[str], wanted: Collection[str]) -> dict[str, FloatArray]:
    if segment.clusters is None:
        return {metric: drawn[0] for metric, drawn in _bootstrap(task, [segment], names, wanted).items()}
    sums_MS, sizes_M = cluster_sums(segment.numbers, segment.clusters)
    drawn = bootstrap_clusters(task, sums_MS, sizes_M, names, all_counts(len(sizes_M)))
    return {metric: values for metric, values in drawn.items() if metric in wanted}


@functools.lru_cache(maxsize=1)  # groups of one size follow each other
def _few_counts(examples: int) -> FloatArray:
    return draw_counts(examples)


def all_counts(examples: int) -> Iterator[FloatArray]:
    """The rows of `draw_counts`, block by block."""
    block = MOST_COUNTS // examples
    if block >= DRAWS:
        yield _few_counts(examples)
        return
    generator = _generator(examples)
    for start in range(0, DRAWS, max(1, block)):
        yield _draw(generator, examples, min(max(1, block), DRAWS - start))


class _SeedMeans(Generic[Key]):
    """Means over seeds of replicates, put into `target` in the end."""

    def __init__(self, target: dict[Key, FloatArray]) -> None:
        self._target = target
        self._sums: dict[Key, tuple[FloatArray, int, CellKey]] = {}

    def add(self, key: Key, values: FloatArray, cell: CellKey) -> None:
        """Add the (D,) replicates of one seed, in the order that the draws of all cells of its size have."""
        if key in self._sums:
            total, seeds, _ = self._sums[key]
            self._sums[key] = (np.add(total, values, out=total), seeds + 1, cell)
        else:
            self._sums[key] = (values.copy(), 1, cell)

    def finish(self) -> None:
        """Divide by the number of seeds, and put the draws in the order of the cell."""
        for key, (total, seeds, cell) in self._sums.items():
            self._target[key] = total[_independent_order(cell[-2], cell[-1])] / seeds


@functools.cache
def _independent_order(task: str, language: str, *purpose: str) -> Any:
    """Order of the draws for one cell of the grid: the same for all models, unrelated between cells and purposes."""
    seed = int.from_bytes(hashlib.sha256("/".join([task, language, *purpose]).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(DRAWS)


def _metric(metric: str | Mapping[str, str], cell: CellKey) -> str:
    return metric if isinstance(metric, str) else metric[cell[-2]]
