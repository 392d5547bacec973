"""What Ray costs, and how long its actors wait: python -m tests.benchmarks.bench_ray.

A teacher scores the same shards twice in each round, in this process and in an actor of a Ray that is started for it.
Processor seconds are those of all processes, Ray's own included, from the first shard done to the last, so that loading
is no part of either. Then what starting costs, and the idle share of actors whose items have unequal costs (log-normal)
and are slept through: given out as actors become free, against every N-th item to worker N, as `--worker` does.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from logitbank.cluster import Factory, Item, Job, RayOptions, connect, room, run_pool
from logitbank.teacher_cache.on_ray import Recipe, open_teacher
from logitbank.teacher_cache.session import open_session
from tests.benchmarks.proxy import SHARED, proxy_settings

OPTIONS = RayOptions(actors=1, gpus=0)


class Sleeper:
    """An engine whose items are waits."""

    def __init__(self, settings: None, number: int) -> None:
        """Nothing to load."""

    def do(self, work: float, advance: Callable[[float], object]) -> None:
        """Wait."""
        time.sleep(work)

    def close(self) -> None:
        """Nothing is held."""


def family_seconds() -> float:
    """Processor seconds of this process and all that descend from it."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def bare(recipe: Recipe) -> tuple[float, int]:
    """Processor seconds in this process from the first shard done to the last, and the number of shards."""
    with open_session(recipe.config, recipe.url, recipe.views) as session:
        work = sorted(session.missing(), key=lambda item: -item.tokens)
        session.fill(work[:1])
        started = family_seconds()
        for item in work[1:]:
            session.fill([item])
        return family_seconds() - started, len(work)


def on_ray(recipe: Recipe) -> tuple[float, float, float]:
    """The same with one actor; and processor seconds and seconds to start and stop Ray around it."""
    marks: list[float] = []
    started = family_seconds(), time.monotonic()
    with connect(OPTIONS, 1) as cluster:
        up = family_seconds() - started[0], time.monotonic() - started[1]
        factory = Factory(f"{open_teacher.__module__}:{open_teacher.__name__}", recipe)
        job = Job(factory, "teacher", "tokens", lambda item, tally: marks.append(family_seconds()))
        run_pool(cluster, room(cluster, OPTIONS), job, None, seconds=120)
    return marks[-1] - marks[0], *up


def overhead(settings: list[str], rounds: int) -> None:
    """Print the ratio of processor time."""
    ratios, ups = [], []
    for turn in range(rounds):
        found: dict[str, Any] = {}
        for name in ("bare", "ray") if turn % 2 == 0 else ("ray", "bare"):
            with tempfile.TemporaryDirectory() as folder:
                recipe = Recipe([], settings, str(Path(folder) / "store"), ("zeroshot",))
                found[name] = (bare if name == "bare" else on_ray)(recipe)
        seconds, shards = found["bare"]
        more, processor, clock = found["ray"]
        ratios.append(more / seconds)
        ups.append(processor)
        print(
            f"{shards} shards: {seconds:.1f} processor seconds alone, {more:.1f} with Ray, ratio {ratios[-1]:.3f}; "
            f"Ray was up after {processor:.1f} processor seconds, {clock:.1f} s on the clock",
            flush=True,
        )
    print(f"median ratio {median(ratios):.3f}, start {median(ups):.1f} processor seconds")


def idle(actors: int, number: int, seconds: float) -> None:
    """Print the idle share of actors."""
    costs = np.random.default_rng(0).lognormal(0, 1, number)
    costs *= seconds * actors / costs.sum()
    items = [Item(str(i), cost, cost) for i, cost in enumerate(costs.tolist())]
    options = RayOptions(actors=actors, gpus=0)
    with connect(options, actors) as cluster:
        job = Job(Factory("tests.benchmarks.bench_ray:Sleeper", None), "items", "seconds")
        report = run_pool(cluster, room(cluster, options), job, items, seconds=120)
    shares = [costs[worker::actors].sum() for worker in range(actors)]
    print(
        f"{actors} actors, {number} items of {costs.min():.2f} to {costs.max():.2f} s: idle {report.idle:.1%}; "
        f"every {actors}th item to a worker: {1 - np.mean(shares) / np.max(shares):.1%}"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="directory with the proxy model and the data")
    parser.add_argument("--examples", type=int, default=120, help="training examples a task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--actors", type=int, default=8, help="of the items that are slept through")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    own = ["tasks=[gsm8k,pos]", "languages=[en]", "store.shard_tokens=1024", "store.chunk_tokens=256"]
    overhead([*proxy_settings(arguments.shared, arguments.examples), *own], arguments.rounds)
    idle(arguments.actors, 25 * arguments.actors, 20.0)


if __name__ == "__main__":
    main()
