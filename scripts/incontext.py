"""What demonstrations are worth to a student: distilled, control and finetuned over many worlds, paired.

    logitbank study incontext --output runs/incontext --seeds 5 [key=value…]

One model is pretrained (see demo_world.py). Each seed is a world of its own: the next hidden scheme, other
sentences, other wrong labels, its own teacher store, and three students that differ in their view alone.
Differences are taken within a seed; intervals are Student's t over seeds. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from logitbank.command import CommandParser, make_directory, positive, run_command
from logitbank.configs import load_config
from logitbank.configs.arguments import add_overrides
from logitbank.errors import ConfigError
from logitbank.experiment import GAPS, STUDENTS, STUDY_CONDITIONS
from logitbank.scripts.arguments import add_output
from logitbank.scripts.ending import duration
from logitbank.scripts.stages import Stages

SCORES = "SELECT condition, task, avg(value) AS value FROM cells WHERE is_primary GROUP BY ALL ORDER BY ALL"


def run_seed(output: Path, seed: int, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """One world with its store and students; returns scores as fractions by condition and task."""
    from logitbank.scripts.demo_world import SCHEMES, World, make_mirror  # torch: not for --help

    work = output / f"seed-{seed}"
    make_mirror(work / "hub", World(seed=seed, scheme=seed % SCHEMES))
    paths = [f"model.name={output / 'model'}", f"data.mirror={work / 'hub'}", f"seed={seed}"]
    stages = Stages(f"seed {seed}", ["demo"], [*paths, *overrides], str(work / "store"), work / "results")
    stages.build()
    stages.students(STUDENTS, work)
    stages.conditions(STUDY_CONDITIONS, work)
    return scores_of(work / "results", STUDY_CONDITIONS)


def scores_of(results: Path, conditions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores as fractions by condition and task, means over languages."""
    from logitbank.storage.results import Catalogue  # not for --help

    scores: dict[str, dict[str, float]] = {condition: {} for condition in conditions}
    for row in Catalogue([results]).rows(SCORES):
        if row["condition"] in scores:
            scores[row["condition"]][row["task"]] = row["value"]
    return scores


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95% confidence interval by Student's t."""
    from scipy.special import stdtrit  # not for --help

    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(stdtrit(len(values) - 1, 0.975)) * error


def table(
    by_seed: Sequence[Mapping[str, Mapping[str, float]]],
    conditions: Sequence[str] = STUDY_CONDITIONS,
    gaps: Sequence[tuple[str, str]] = GAPS,
) -> str:
    """Markdown: conditions and their paired differences, by task and as the mean over tasks.

    Args:
        by_seed: for each seed, scores as fractions by condition and task.
        conditions: a row each.
        gaps: a row for each difference: what is subtracted from, and what is subtracted.
    """
    tasks = list(by_seed[0]["base"])
    lines = [f"| | {' | '.join(tasks)} | task_mean |", f"|:--|{'--:|' * (len(tasks) + 1)}"]

    def row(name: str, first: str, second: str | None) -> str:
        columns = [
            [scores[first][task] - (scores[second][task] if second else 0.0) for scores in by_seed] for task in tasks
        ]
        columns.append([statistics.mean(values) for values in zip(*columns, strict=True)])
        sign = "+" if second else ""
        cells = []
        for values in columns:
            mean, half = mean_and_interval([100 * value for value in values])
            cells.append(f"{mean:{sign}.1f} ±{half:.1f}")
        return f"| {name} | {' | '.join(cells)} |"

    lines += [row(condition, condition, None) for condition in conditions]
    lines += [row(f"{first} − {second}", first, second) for first, second in gaps]
    return "\n".join(lines)


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank study incontext", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser)
    parser.add_argument(
        "--seeds", type=positive(int), default=5, metavar="N", help="number of worlds, at least 2 (default: 5)"
    )
    add_overrides(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_command(lambda: run(arguments.output, arguments.seeds, arguments.overrides), resumes=True)


def run(output: Path, seeds: int, overrides: Sequence[str]) -> None:
    """All seeds, then the table.

    Raises:
        ConfigError: fewer than two seeds, or settings that are wrong; before minutes of pretraining.
    """
    from logitbank.scripts.demo_world import Pretraining, make_model  # torch: not for --help

    if seeds < 2:
        raise ConfigError(f"--seeds: expected at least 2 for a confidence interval, got {seeds}")
    load_config(["demo"], overrides)
    started = time.monotonic()
    make_directory("--output", output)
    make_model(output / "model", Pretraining())
    by_seed = [run_seed(output, seed, overrides) for seed in range(seeds)]
    print(f"\n{len(by_seed)} seeds; in %, mean ±half of the 95% interval over seeds, differences paired by seed\n")
    print(table(by_seed))
    print(f"\nwhere     {output}/seed-*: a store, students and results of each")
    print(f"took      {duration(time.monotonic() - started)}")
