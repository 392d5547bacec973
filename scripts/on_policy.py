"""What answers of its own are worth to a student, against the same steps on given answers, over many worlds, paired.

    logitbank study on-policy --output runs/on-policy --rounds 2 --seeds 5 [key=value…]

One model is pretrained (see demo_world.py). Each seed is a world of its own, in which three students begin with that
model and take the same steps, in rounds that begin with the weights of the round before:

    given       on given answers, by cross-entropy and the teacher, as the study's `distilled` learns
    taught      on given answers, by the teacher alone
    on_policy   on answers that it samples itself at the start of each round, by the teacher alone

Differences are taken within a seed; intervals are Student's t over seeds. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from logitbank.command import CommandParser, make_directory, positive, run_command
from logitbank.configs import load_config
from logitbank.configs.arguments import add_overrides
from logitbank.errors import ConfigError, counted
from logitbank.scripts.arguments import add_output
from logitbank.scripts.ending import duration
from logitbank.scripts.incontext import scores_of, table
from logitbank.scripts.stages import Stages

VIEW = "fewshot"
ARMS = ("given", "taught", "on_policy")
CONDITIONS = ("base", *ARMS)
DIFFERENCES = (("on_policy", "taught"), ("on_policy", "given"), ("taught", "given"))
ALONE = "distillation.ce_weight=0"
LOSS = "distillation.loss=forward_kl"


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        output: everything goes there.
        rounds: of sampling and training.
        steps: optimizer steps of a round.
        seeds: worlds.
        overrides: `key=value` for every stage.
    """

    output: Path
    rounds: int = 2
    steps: int = 50
    seeds: int = 5
    overrides: Sequence[str] = ()

    def settings(self, seed: int) -> list[str]:
        """What all stages of a seed share; the user's keys come last."""
        places = [f"model.name={self.output / 'model'}", f"data.mirror={self.work(seed) / 'hub'}", f"seed={seed}"]
        lengths = [f"training.max_steps={self.steps}", f"training.save_steps={self.steps}"]
        return [*places, *lengths, f"training.warmup_steps={self.steps // 10}", LOSS, *self.overrides]

    def work(self, seed: int) -> Path:
        """Directory of a seed."""
        return self.output / f"seed-{seed}"

    def student(self, seed: int, arm: str, number: int) -> Path:
        """Directory of a student after a round, counted from 1."""
        return self.work(seed) / f"{arm}-{number}"


def run_seed(study: Study, seed: int) -> dict[str, dict[str, float]]:
    """One world with its stores and students; returns scores as fractions by condition and task."""
    from logitbank.scripts.demo_world import SCHEMES, World, make_mirror  # torch: not for --help

    work = study.work(seed)
    make_mirror(work / "hub", World(seed=seed, scheme=seed % SCHEMES))
    stages = Stages(f"seed {seed}", ["demo"], study.settings(seed), str(work / "given"), work / "results")
    stages.build([VIEW])
    for number in range(1, study.rounds + 1):
        for arm in ARMS:
            before = None if number == 1 else study.student(seed, arm, number - 1) / "final"
            student = study.student(seed, arm, number)
            own = replace(stages, store=str(student / "store")) if arm == "on_policy" else stages
            if arm == "on_policy":
                written = own.sample(student / "answers.jsonl", sampled_by(before, seed, number))
                own.build([VIEW], written)
            own.train(VIEW, student, trained_by(arm, before))
    stages.evaluate("base")
    for arm in ARMS:
        stages.evaluate(arm, study.student(seed, arm, study.rounds), new=True)
    return scores_of(work / "results", CONDITIONS)


def sampled_by(before: Path | None, seed: int, number: int) -> list[str]:
    """Who answers in a round, and with which numbers: others in each round."""
    who = [] if before is None else [f"sampling.model={before}"]
    return [*who, f"sampling.seed={1000 * number + seed}"]


def trained_by(arm: str, before: Path | None) -> list[str]:
    """What tells a student's training in a round from that of the others."""
    begins = [] if before is None else [f"training.init_from={before}"]
    return [*begins, *([] if arm == "given" else [ALONE])]


def make_parser() -> CommandParser:
    """The command's arguments."""
    default = Study(Path())
    parser = CommandParser(
        prog="logitbank study on-policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser)
    for name, value, what in (
        ("--rounds", default.rounds, "rounds of sampling, scoring and training"),
        ("--steps", default.steps, "optimizer steps of a round"),
        ("--seeds", default.seeds, "worlds, at least 2"),
    ):
        parser.add_argument(name, type=positive(int), default=value, metavar="N", help=f"{what} (default: {value})")
    parser.add_argument("--dry-run", action="store_true", help="check the settings and list the students, train none")
    add_overrides(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    got = make_parser().parse_intermixed_args(argv)
    study = Study(got.output, got.rounds, got.steps, got.seeds, got.overrides)
    run_command(lambda: (show if got.dry_run else run)(study), resumes=not got.dry_run)


def check(study: Study) -> None:
    """Raise `ConfigError` for fewer than two seeds, or settings that are wrong; before minutes of pretraining."""
    if study.seeds < 2:
        raise ConfigError(f"--seeds: expected at least 2, an interval needs them, got {study.seeds}")
    config = load_config(["demo"], study.settings(0))
    for key, value in (("training.init_from", config.training.init_from), ("sampling.model", config.sampling.model)):
        if value is not None:
            raise ConfigError(f"{key}: each round begins with the one before; expected null, got {value}")


def show(study: Study) -> None:
    """Print what would be trained; see `check` for errors."""
    check(study)
    for seed in range(study.seeds):
        for arm in ARMS:
            for number in range(1, study.rounds + 1):
                before = "model" if number == 1 else f"{arm}-{number - 1}"
                answers = f"answers of {before}" if arm == "on_policy" else "given answers"
                print(f"seed-{seed}/{arm}-{number}: {counted(study.steps, 'step')} from {before}, on {answers}")


def run(study: Study) -> None:
    """All seeds, then the table.

    Raises:
        ConfigError: see `check`.
    """
    from logitbank.scripts.demo_world import Pretraining, make_model  # torch: not for --help

    check(study)
    started = time.monotonic()
    make_directory("--output", study.output)
    make_model(study.output / "model", Pretraining())
    by_seed = [run_seed(study, seed) for seed in range(study.seeds)]
    shown = table(by_seed, CONDITIONS, DIFFERENCES)
    (study.output / "table.md").write_text(f"{shown}\n", encoding="utf-8")
    print(
        f"\n{counted(study.seeds, 'seed')}, {counted(study.rounds, 'round')} of {counted(study.steps, 'step')}; in %, "
        "mean ±half of the 95% interval over seeds, differences paired by seed\n"
    )
    print(shown)
    print(f"\nwhere     {study.output}/seed-*: stores, students and results of each; table.md")
    print(f"took      {duration(time.monotonic() - started)}")
