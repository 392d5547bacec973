"""Many students from one store: λ × strategy × view × seed, each trained and evaluated once, one table at the end.

    python scripts/lambda_sweep.py --store STORE --output DIR --config FILE… \
        --view fewshot zeroshot --lambda 0 0.05 0.1 0.2 0.5 --strategy fixed entropy --seed 42 43 [key=value…]

λ = 0 is plain fine-tuning (`--view none`): one student per seed, whatever the views and strategies. `per_task` has
λ of its own: one student per view and seed, whatever `--lambda` says. Students that are finished and cells that are
evaluated are skipped, so the same command goes on where it was stopped.
From Python: `run_sweep(Sweep(...))`, then `summarize(results)`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logitbank.command import CommandParser, run_command
from logitbank.configs import ConfigError, load_config
from logitbank.evaluation.evaluate_command import main as evaluate_model
from logitbank.storage import TeacherStore
from logitbank.storage.results.catalogue import Catalogue
from logitbank.student_train.train_command import main as train_student

SUMMARY = """
    WITH per_seed AS (
        SELECT condition, task, seed, avg(value) AS value FROM metrics WHERE is_primary GROUP BY ALL
    )
    SELECT condition, task, avg(value) AS value, stddev_samp(value) AS deviation, count(*) AS seeds
    FROM per_seed GROUP BY ALL
"""


@dataclass(frozen=True)
class Sweep:
    """What to train.

    Attributes:
        store: URL of the teacher store.
        output: students go to `output/<name>`, rows to `output/results`.
        config: `--config` files, and `key=value` overrides that reach every command.
        views, lambdas, strategies, seeds: every combination is one student.
    """

    store: str
    output: Path
    config: Sequence[str]
    overrides: Sequence[str] = ()
    views: Sequence[str] = ("fewshot",)
    lambdas: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.5)
    strategies: Sequence[str] = ("fixed",)
    seeds: Sequence[int] = (42,)


@dataclass(frozen=True)
class Student:
    """One student of a sweep; `condition` is the same for all seeds."""

    condition: str
    view: str
    seed: int
    overrides: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Directory of the student."""
        return f"{self.condition}-seed{self.seed}"


def students(sweep: Sweep) -> list[Student]:
    """Every student of a sweep, plain fine-tuning first."""
    found = [Student("sft", "none", seed) for seed in sweep.seeds if 0 in sweep.lambdas]
    for view, strategy in itertools.product(sweep.views, sweep.strategies):
        overrides = [f"distillation.strategy={strategy}"]
        condition = f"{view}-{strategy.replace('*', '+')}"
        if "per_task" in strategy.split("*"):  # has λ of its own, from `distillation.lambda_per_task`
            found += [Student(condition, view, seed, overrides) for seed in sweep.seeds]
            continue
        for value, seed in itertools.product([x for x in sweep.lambdas if x > 0], sweep.seeds):
            own = [f"distillation.lambda_distill={value:g}", *overrides]
            found.append(Student(f"{condition}-lambda{value:g}", view, seed, own))
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
    """Train and evaluate whatever is not done yet; returns the directory of the result rows."""
    check(sweep)
    todo, store = students(sweep), TeacherStore.open(sweep.store)
    for view in dict.fromkeys(student.view for student in todo if student.view != "none"):
        store.require_view(view)
    results = sweep.output / "results"
    for number, student in enumerate(todo, start=1):
        directory = sweep.output / student.name
        print(f"[{number}/{len(todo)}] {student.name}", file=sys.stderr, flush=True)
        settings = ["--config", *sweep.config, *sweep.overrides, *student.overrides, f"seed={student.seed}"]
        places = ["--store", sweep.store, "--view", student.view, "--output", str(directory), "--resume"]
        train_student([*places, "--results", str(results), *settings])
        checkpoint = ["--checkpoint", str(directory / "final"), "--condition", student.condition]
        evaluate_model([*checkpoint, "--results", str(results), *settings])
    return results


def summarize(results: Path) -> list[dict[str, Any]]:
    """Per condition and task: the mean over languages, then over seeds, with the deviation between seeds."""
    return Catalogue([results]).rows(SUMMARY)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Conditions as rows, tasks as columns, in percent; ± is the deviation between seeds."""
    tasks = sorted({row["task"] for row in rows})
    cells = {(row["condition"], row["task"]): row for row in rows}
    print("| condition | seeds | " + " | ".join(tasks) + " | task_mean |")
    print("|---|--:|" + "--:|" * (len(tasks) + 1))
    for condition in sorted({row["condition"] for row in rows}, key=lambda name: (name != "sft", name)):
        own = [cells[condition, task] for task in tasks if (condition, task) in cells]
        texts = [_cell(cells.get((condition, task))) for task in tasks]
        mean = sum(row["value"] for row in own) / len(own)
        whole = f"{100 * mean:.1f}" if len(own) == len(tasks) else "–"
        print(f"| {condition} | {own[0]['seeds']} | " + " | ".join(texts) + f" | {whole} |")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    spread = f" ± {100 * row['deviation']:.1f}" if row["deviation"] is not None else ""
    return f"{100 * row['value']:.1f}{spread}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sweep from the command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, metavar="URL")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--config", nargs="+", default=[], metavar="FILE")
    parser.add_argument("--view", nargs="+", default=["fewshot"])
    parser.add_argument("--lambda", nargs="+", type=float, default=[0, 0.05, 0.1, 0.2, 0.5], dest="lambdas")
    parser.add_argument("--strategy", nargs="+", default=["fixed"])
    parser.add_argument("--seed", nargs="+", type=int, default=[42])
    parser.add_argument("--dry-run", action="store_true", help="check the grid and list its students, train none")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="reach every command")
    given = sys.argv[1:] if argv is None else list(argv)
    overrides = [item for item in given if "=" in item and not item.startswith("--")]  # anywhere, in any order
    got = parser.parse_args([item for item in given if item not in overrides])
    sweep = Sweep(got.store, got.output, got.config, overrides, got.view, got.lambdas, got.strategy, got.seed)

    def body() -> None:
        if got.dry_run:
            check(sweep)
            print("\n".join(student.name for student in students(sweep)))
        else:
            print_table(summarize(run_sweep(sweep)))

    run_command(body)


if __name__ == "__main__":
    main()
