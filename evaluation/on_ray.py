"""Evaluate cells with actors of Ray: each keeps a model loaded, and takes the cells that nobody has answered yet."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from logitbank.cluster import Factory, Item, Job, RayOptions, connect, room, run_pool
from logitbank.evaluation.classify import Classification, classify_all
from logitbank.evaluation.engines.base import Engine, open_engine
from logitbank.evaluation.finished import Place
from logitbank.evaluation.run import Evaluation, evaluate_cell, plan_all

logger = logging.getLogger(__name__)


class Cell(NamedTuple):
    """A cell of one of several evaluations, by the evaluation's index."""

    plan: int
    cell: Place


class CellsActor:
    """The plans of all evaluations, and the model of the one that was asked for last.

    Args:
        jobs: what to evaluate.
    """

    def __init__(self, jobs: Sequence[Evaluation]) -> None:
        self._plans = plan_all(jobs)
        self._loaded: tuple[int, Engine] | None = None

    def todo(self) -> list[Item]:
        """Every cell that is not finished; those of one checkpoint are a group."""
        return [
            Item(f"{plan.job.condition} {'/'.join(cell)}", plan.contents[cell].examples, Cell(index, cell), str(index))
            for index, plan in enumerate(self._plans)
            for cell in plan.pending
        ]

    def do(self, work: Cell, advance: Callable[[float], object]) -> None:
        """Answer, score and write a cell."""
        evaluate_cell(self._plans[work.plan], work.cell, lambda: self._engine(work.plan), _Bar(advance))

    def close(self) -> None:
        """Nothing is held but memory."""

    def _engine(self, index: int) -> Engine:
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None
            gc.collect()
            torch.cuda.empty_cache()  # two models need not fit at once
            job = self._plans[index].job
            self._loaded = index, open_engine(job.config, job.checkpoint)
        return self._loaded[1]


class ComparisonsActor:
    """All evaluations of comparisons, as a single item.

    Args:
        jobs: what to evaluate.
    """

    def __init__(self, jobs: Sequence[Classification]) -> None:
        self._jobs = jobs

    def todo(self) -> list[Item]:
        """One item."""
        return [Item("comparisons", 1, None)]

    def do(self, work: None, advance: Callable[[float], object]) -> None:
        """Evaluate all of them."""
        classify_all(self._jobs)

    def close(self) -> None:
        """Nothing is held but memory."""


class _Bar:
    """Counts for the driver, and prints what it will print."""

    def __init__(self, advance: Callable[[float], object]) -> None:
        self._advance = advance

    def advance(self, count: float) -> None:
        """Count more answers."""
        self._advance(count)

    def say(self, text: str) -> None:
        """Print a line."""
        print(text)


def evaluate_on_ray(factory: Factory, options: RayOptions, unit: str, *, tensor_parallel: int = 1) -> None:
    """Have actors do all items.

    Args:
        factory: makes a `CellsActor` or `ComparisonsActor`.
        options: of the cluster.
        unit: of the progress bar.
        tensor_parallel: GPUs over which an engine spreads its model with processes of its own.

    Raises:
        ClusterError: see `run_pool`; what an actor could not do, with the message of `evaluate_all`.
        ConfigError: Ray cannot be reached, or has less than was asked.
    """
    several = tensor_parallel > 1
    with connect(options, options.actors or 1) as cluster:
        taken = room(cluster, options, gpus=float(tensor_parallel) if several else None, bundles=several)
        logger.info("%s; at most %s", cluster, taken)
        report = run_pool(cluster, taken, Job(factory, "evaluation", unit), None, seconds=options.seconds)
    if report.items:
        logger.info("%s", report)
