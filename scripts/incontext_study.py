"""What demonstrations are worth to a student: distilled, control and finetuned over many worlds, paired.

    python scripts/incontext_study.py --output runs/incontext --seeds 5 [key=value…]

One model is pretrained (see demo_world.py). Each seed is a world of its own: the next hidden scheme, other
sentences, other wrong labels, its own teacher store, and three students that differ in their view alone.
Differences are taken within a seed; intervals are Student's t over seeds. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy.special import stdtrit

from logitbank.command import CommandParser, make_directory, run_command
from logitbank.configs import load_config
from logitbank.evaluation.evaluate_command import main as evaluate_model
from logitbank.scripts.demo_world import SCHEMES, Pretraining, World, make_mirror, make_model
from logitbank.storage.results.catalogue import Catalogue
from logitbank.student_train.train_command import main as train_student
from logitbank.teacher_cache.build_command import main as build_teacher_cache

STUDENTS = {"finetuned": "none", "control": "zeroshot", "distilled": "fewshot"}
CONDITIONS = ("base", "fewshot", *STUDENTS)
PAIRS = (("distilled", "finetuned"), ("control", "finetuned"), ("distilled", "control"))
SCORES = "SELECT condition, task, avg(value) AS value FROM cells WHERE is_primary GROUP BY ALL"


def run_seed(output: Path, seed: int, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """One world with its store and students; returns scores as fractions by condition and task."""
    work = output / f"seed-{seed}"
    make_mirror(work / "hub", World(seed=seed, scheme=seed % SCHEMES))
    paths = [f"model.name={output / 'model'}", f"data.mirror={work / 'hub'}", f"seed={seed}"]
    settings = ["--config", "demo", *paths, *overrides]
    results = ["--results", str(work / "results")]
    store = ["--store", str(work / "store")]
    build_teacher_cache([*settings, *store, "--view", "fewshot", "--view", "zeroshot"])
    for condition, view in STUDENTS.items():
        student = ["--view", view, "--output", str(work / condition), "--resume"]
        train_student([*settings, *store, *student, *results])
    for condition in CONDITIONS:
        trained = ["--checkpoint", str(work / condition / "final")] if condition in STUDENTS else []
        evaluate_model([*settings, "--condition", condition, *trained, *results])
    scores: dict[str, dict[str, float]] = {condition: {} for condition in CONDITIONS}
    for row in Catalogue([work / "results"]).rows(SCORES):
        scores[row["condition"]][row["task"]] = row["value"]
    return scores


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95% confidence interval by Student's t."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(stdtrit(len(values) - 1, 0.975)) * error


def table(by_seed: Sequence[dict[str, dict[str, float]]]) -> str:
    """Markdown: conditions and their paired differences, by task and as the mean over tasks."""
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

    lines += [row(condition, condition, None) for condition in CONDITIONS]
    lines += [row(f"{first} − {second}", first, second) for first, second in PAIRS]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.seeds < 2:
        parser.error(f"--seeds: expected at least 2, an interval needs them, got {arguments.seeds}")
    run_command(lambda: run(arguments.output, arguments.seeds, arguments.overrides))


def run(output: Path, seeds: int, overrides: Sequence[str]) -> None:
    """All seeds, then the table."""
    load_config(["demo"], overrides)  # a wrong key is said before minutes of pretraining
    make_directory("--output", output)
    make_model(output / "model", Pretraining())
    by_seed = [run_seed(output, seed, overrides) for seed in range(seeds)]
    print(f"\n{len(by_seed)} seeds; in %, mean ±half of the 95% interval over seeds, differences paired by seed\n")
    print(table(by_seed))


if __name__ == "__main__":
    main()
