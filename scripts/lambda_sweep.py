"""Many students from one store: λ × strategy × view × seed, each trained and evaluated once, then the tables.

    logitbank study lambda-sweep --output runs/ner-sweep --config llama-3.2-3b sweep-ner
    logitbank study lambda-sweep --output runs/warmup --config llama-3.2-3b warmup-then-sft --lambda 0 0.05
    logitbank study lambda-sweep --output runs/ner-sweep --config llama-3.2-3b sweep-ner --ray --gpus-per-student 0.25
    logitbank study lambda-sweep --output runs/small --config qwen3-1.7b --view fewshot zeroshot --lambda 0 0.5 \\
        --strategy fixed entropy --seed 42 43 training.max_steps=100

λ = 0 is plain fine-tuning: one student per seed, whatever the views and strategies. `per_task` has λ of its own: one
student per view and seed, whatever `--lambda` says. What is finished is not done again.
From Python: `run_sweep(Sweep(...))`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from logitbank.cluster import Factory, Item, Job, RayOptions, add_ray, connect, ray_options, room, run_pool
from logitbank.command import CommandParser, make_directory, run_command
from logitbank.configs import load_config
from logitbank.configs.arguments import add_config_arguments, add_values, overrides_of
from logitbank.errors import ConfigError
from logitbank.experiment import condition_of
from logitbank.scripts.arguments import add_output, add_processes
from logitbank.scripts.ending import Ending
from logitbank.scripts.stages import Stages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """What to train.

    Attributes:
        output: students go to `output/<name>`, rows to `output/results`, the report to `output/report.md`.
        config: `--config` files, and `key=value` overrides that reach every student.
        store: URL of a teacher store that has the views; None builds `output/store`.
        views, lambdas, strategies, seeds: every combination is one student.
        processes: see `Stages`.
        ray: trains and evaluates several students at once, in actors; None: one after the other, here.
    """

    output: Path
    config: Sequence[str]
    overrides: Sequence[str] = ()
    store: str | None = None
    views: Sequence[str] = ("fewshot",)
    lambdas: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.5)
    strategies: Sequence[str] = ("fixed",)
    seeds: Sequence[int] = (42,)
    processes: int | None = None
    ray: RayOptions | None = None

    @property
    def url(self) -> str:
        """Of the teacher store."""
        return self.store or str(self.output / "store")

    @property
    def stages(self) -> Stages:
        """What makes the store and each student."""
        return Stages("sweep", self.config, self.overrides, self.url, self.output / "results", self.processes)


@dataclass(frozen=True)
class Student:
    """One student of a sweep.

    Attributes:
        view: teacher view, or None for plain fine-tuning.
        seed: of the run.
        variant: its strategy and λ, as the name of its directory has them; empty for plain fine-tuning.
        overrides: what tells it from the others, the seed aside.
    """

    view: str | None
    seed: int
    variant: str = ""
    overrides: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Directory of the student, by the condition that its view has in a study."""
        return "-".join(filter(None, (condition_of(self.view), self.variant, f"seed{self.seed}")))


def students(sweep: Sweep) -> list[Student]:
    """Every student of a sweep, plain fine-tuning first."""
    found = [Student(None, seed) for seed in sweep.seeds if 0 in sweep.lambdas]
    for view, strategy in itertools.product(sweep.views, sweep.strategies):
        overrides = [f"distillation.strategy={strategy}"]
        variant = strategy.replace("*", "+")
        if "per_task" in strategy.split("*"):  # has λ of its own, from `distillation.lambda_per_task`
            found += [Student(view, seed, variant, overrides) for seed in sweep.seeds]
            continue
        for value, seed in itertools.product([x for x in sweep.lambdas if x > 0], sweep.seeds):
            own = [f"distillation.lambda_distill={value:g}", *overrides]
            found.append(Student(view, seed, f"{variant}-lambda{value:g}", own))
    return found


def check(sweep: Sweep) -> None:
    """Refuse a grid of which any student could not be trained, before the first one is.

    Raises:
        ConfigError: a λ below 0, a value twice, or settings that the configuration refuses.
    """
    grid = {"--view": sweep.views, "--lambda": sweep.lambdas, "--strategy": sweep.strategies, "--seed": sweep.seeds}
    for option, values in grid.items():
        if len(set(values)) < len(values):
            raise ConfigError(f"{option}: expected each value once, got {' '.join(map(str, values))}")
    if not all(value >= 0 for value in sweep.lambdas):
        raise ConfigError(f"--lambda: expected numbers of at least 0, got {' '.join(map(str, sweep.lambdas))}")
    for student in students(sweep):
        load_config(sweep.config, [*sweep.overrides, *student.overrides])


def run_sweep(sweep: Sweep) -> Path:
    """Train and evaluate whatever is not done yet; returns the directory of the result rows.

    Raises:
        ConfigError: see `check`.
        StoreError: `sweep.store` is not a store, or lacks a view.
    """
    from logitbank.storage import TeacherStore  # not for --help

    check(sweep)
    todo = students(sweep)
    if sweep.store is not None:
        store = TeacherStore.open(sweep.store)
        for view in sweep.views:
            store.require_view(view)
    make_directory("--output", sweep.output)
    if sweep.ray is not None:
        if sweep.store is None:
            sweep.stages.build_on_ray(sweep.views, sweep.ray)
        _run_on_ray(sweep, todo, sweep.ray)
        return sweep.stages.results
    if sweep.store is None:
        sweep.stages.build(sweep.views)
    for number, student in enumerate(todo, start=1):
        logger.info("\n[%d/%d] %s", number, len(todo), student.name)
        make(sweep, student)
    return sweep.stages.results


def make(sweep: Sweep, student: Student) -> None:
    """Train and evaluate a student, where that is not done."""
    directory = sweep.output / student.name
    sweep.stages.train(student.view, directory, [*student.overrides, f"seed={student.seed}"])
    sweep.stages.evaluate(None, directory)


class StudentActor:
    """Makes students in an actor's process, one after the other.

    Args:
        sweep: that they belong to.
        number: of the actor.
    """

    def __init__(self, sweep: Sweep, number: int) -> None:
        self._sweep = sweep

    def do(self, work: Student, advance: Callable[[float], object]) -> None:
        """Train and evaluate a student."""
        make(self._sweep, work)

    def close(self) -> None:
        """Nothing is held but memory."""


def _run_on_ray(sweep: Sweep, todo: Sequence[Student], options: RayOptions) -> None:
    """Make the students in actors, several at once."""
    sweep = dataclasses.replace(sweep, ray=None)
    items = [Item(student.name, 1, student) for student in todo]
    factory = Factory("logitbank.scripts.lambda_sweep:StudentActor", sweep)
    with connect(options, options.actors or 1) as cluster:
        taken = room(cluster, options)
        logger.info("%s; at most %s", cluster, taken)
        run_pool(cluster, taken, Job(factory, "sweep", "students"), items, seconds=options.seconds)


def make_parser() -> CommandParser:
    """The command's arguments."""
    default = Sweep(Path(), [])
    parser = CommandParser(
        prog="logitbank study lambda-sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser)
    add_config_arguments(parser)
    parser.add_argument("--store", metavar="URL", help="a teacher store to use (default: OUTPUT/store is built)")
    add_values(parser, "--view", default=default.views, metavar="VIEW", help="teacher views (default: fewshot)")
    add_values(
        parser,
        "--lambda",
        kind=float,
        default=default.lambdas,
        dest="lambdas",
        metavar="λ",
        help=f"weights of the distillation term (default: {' '.join(f'{value:g}' for value in default.lambdas)})",
    )
    add_values(parser, "--strategy", default=default.strategies, metavar="NAME", help="λ strategies (default: fixed)")
    add_values(parser, "--seed", kind=int, default=default.seeds, metavar="N", help="seeds (default: 42)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the grid and list its students without training them"
    )
    add_processes(parser)
    add_ray(parser, per="student", what="students")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    got = make_parser().parse_intermixed_args(argv)
    sweep = Sweep(
        output=got.output,
        config=got.config,
        overrides=overrides_of(got),
        store=got.store,
        views=got.view,
        lambdas=got.lambdas,
        strategies=got.strategy,
        seeds=got.seed,
        processes=got.processes,
    )
    run_command(lambda: _list(sweep) if got.dry_run else _run(sweep, ray_options(got, per="student")), resumes=True)


def _list(sweep: Sweep) -> None:
    check(sweep)
    print("\n".join(student.name for student in students(sweep)))


def _run(sweep: Sweep, ray: RayOptions | None) -> None:
    ending = Ending(sweep.output)
    run_sweep(dataclasses.replace(sweep, ray=ray))
    ending.print()
