"""Fill a store with actors of Ray: each keeps its teacher loaded, and takes the shards that nobody has done yet.

The driver plans nothing and loads no model. The first actor plans, writes the base, and says which shards are
missing; the others find the plan. Locks are those of workers whose number may change: the driver's keeps other
builders away, and each actor's, with a number that no other has had, tells a later driver that it still lives.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from logitbank.cluster import Factory, Item, Job, RayOptions, connect, room, run_pool
from logitbank.configs import Config, load_config
from logitbank.errors import StoreBusyError
from logitbank.models.workers import Worker
from logitbank.storage.objects import open_objects, open_writable
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.preparation import opener_of
from logitbank.teacher_cache.scoring import Tally
from logitbank.teacher_cache.session import Session, ShardWork, open_session

logger = logging.getLogger(__name__)

CHANGING = 0  # workers, where their number may change
DRIVER = 0  # index of the driver's lock; actors count from 1
ORPHANS = 20.0  # seconds for the actors of a driver that was killed to end


@dataclass(frozen=True)
class Recipe:
    """How an actor opens its session.

    Attributes:
        files, overrides: of the configuration, as the command was given them.
        url: of the store.
        views: to fill.
        split: whose examples.
        answers: file of answers that a model wrote; None for the examples' own.
    """

    files: Sequence[str]
    overrides: Sequence[str]
    url: str
    views: Sequence[str]
    split: str = TRAIN
    answers: str | None = None

    @property
    def config(self) -> Config:
        """The configuration; opens the tasks that it names by file."""
        return load_config(self.files, self.overrides)


class TeacherActor:
    """A session in an actor's process.

    Args:
        opening: the session; it stays open until `close`.
    """

    def __init__(self, opening: AbstractContextManager[Session]) -> None:
        self._held = contextlib.ExitStack()
        self._session = self._held.enter_context(opening)

    def todo(self) -> list[Item]:
        """Every shard that is missing."""
        return [Item(f"{work.view} shard {work.shard}", work.tokens, work) for work in self._session.missing()]

    def do(self, work: ShardWork, advance: Callable[[float], object]) -> Tally:
        """Score and write a shard."""
        return self._session.fill([work], advance)

    def close(self) -> None:
        """Release the lock."""
        self._held.close()


def open_teacher(recipe: Recipe, number: int) -> TeacherActor:
    """The engine of an actor."""
    worker = actor_worker(number)
    return TeacherActor(
        open_session(recipe.config, recipe.url, recipe.views, split=recipe.split, answers=recipe.answers, worker=worker)
    )


def actor_worker(number: int) -> Worker:
    """Whose lock an actor holds."""
    return Worker(number, CHANGING, "Ray")


def build_on_ray(recipe: Recipe, options: RayOptions) -> Tally:
    """Write every shard that a store still lacks; see `build_store`.

    Args:
        recipe: of the build.
        options: of the cluster; by default an actor has the GPUs of one tensor-parallel teacher.

    Raises:
        ClusterError: see `run_pool`; what an actor could not do, with the message that `build_store` would have.
        ConfigError: Ray cannot be reached, or has less than was asked.
        StoreError: a store that another process builds, or that cannot be written.
    """
    config = recipe.config
    opener_of(config).check(config)
    parallel = config.vllm.tensor_parallel if config.teacher.engine == "vllm" else 1
    factory = Factory("logitbank.teacher_cache.on_ray:open_teacher", recipe)
    return fill_on_ray(recipe.url, factory, options, tensor_parallel=parallel)


def fill_on_ray(url: str, factory: Factory, options: RayOptions, *, tensor_parallel: int = 1) -> Tally:
    """Have actors fill a store.

    Args:
        url: of the store.
        factory: makes a `TeacherActor`.
        options: of the cluster.
        tensor_parallel: GPUs over which an engine spreads its model with processes of its own.

    Raises:
        ClusterError, ConfigError, StoreError: see `build_on_ray`.
    """
    objects, total = open_writable(url), Tally()

    def finished(item: Item, tally: Tally) -> None:
        total.add(tally)
        total.fallen_shards += tally.fallen_shards

    with connect(options, options.actors or 1) as cluster:
        several = tensor_parallel > 1
        taken = room(cluster, options, gpus=float(tensor_parallel) if several else None, bundles=several)
        logger.info("%s; at most %s", cluster, taken)
        _remove_partials(url)
        with objects.builder_lock(DRIVER, CHANGING):
            report = run_pool(
                cluster, taken, Job(factory, "teacher", "tokens", finished), None, seconds=options.seconds
            )
        if report.deaths:
            _remove_partials(url)
    total.seconds = report.seconds
    if report.items:
        logger.info("%s", report)
    return total


def _remove_partials(url: str) -> None:
    """Remove what killed writers left; waits for the actors of a killed driver, which end by themselves."""
    objects, started = open_objects(url), time.monotonic()
    while True:
        try:
            with objects.builder_lock():
                objects.remove_partials()
            return
        except StoreBusyError:
            if time.monotonic() - started > ORPHANS:
                raise
            time.sleep(0.5)
