"""GSM8K: the model without and with eight demonstrations, its students at every checkpoint, ablations of the teacher.

    logitbank study gsm8k --output runs/gsm8k --config qwen3-1.7b               # the published setting
    logitbank study gsm8k --output runs/small --model PATH_OR_HUB_ID --train 200 --steps 60 --samples 20 \\
        data.mirror=DIR                                                         # another model, small

The ablations are a teacher without demonstrations and one whose demonstrations have shuffled answers. What is
finished is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, make_directory, run_command
from logitbank.configs.arguments import add_config_arguments, overrides_of
from logitbank.errors import ConfigError
from logitbank.experiment import CONDITIONS, QUESTION_VIEWS, TrainingRecord
from logitbank.scripts.arguments import Size, add_output, add_processes, add_size, size_of
from logitbank.scripts.ending import Ending
from logitbank.scripts.stages import Stages

PUBLISHED = Size(train=7473, steps=1000, samples=1319)


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank study gsm8k", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser)
    add_config_arguments(parser)
    parser.add_argument("--model", metavar="MODEL", help="path or hub id, for model.name=MODEL")
    add_size(parser, PUBLISHED)
    add_processes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_command(lambda: _run(arguments), resumes=True)


def _run(arguments: argparse.Namespace) -> None:
    if not arguments.config and arguments.model is None:
        raise ConfigError("--config or --model: expected a model, got none")
    named = [f"model.name={arguments.model}"] if arguments.model else []
    overrides = [*named, *overrides_of(arguments)]
    run(arguments.output, arguments.config, size_of(arguments), overrides, arguments.processes)


def run(output: Path, files: Sequence[str], size: Size, overrides: Sequence[str], processes: int | None = None) -> None:
    """Teacher, students and their checkpoints, then the report.

    Raises:
        ConfigError: before anything starts, if settings are wrong.
    """
    settings = [*size.overrides(), *overrides]
    stages = Stages("gsm8k", [*files, "gsm8k"], settings, str(output / "store"), output / "results", processes)
    save_steps = stages.config.training.save_steps
    ending = Ending(output)
    make_directory("--output", output)
    stages.build(QUESTION_VIEWS)
    for condition in CONDITIONS.values():
        if not condition.trained:
            stages.evaluate(condition.name)
            continue
        student = output / condition.name
        stages.train(condition.view, student)
        trained = TrainingRecord.read(student / "final")
        assert trained is not None
        assert trained.step is not None
        stages.evaluate(None, student, [*range(save_steps, trained.step, save_steps), trained.step])  # five
    ending.print()
