"""The whole study on one or several models: teacher caches, three students each, five conditions, tables.

    logitbank study xtreme --output runs/xtreme --config qwen3-1.7b                  # the published setting
    logitbank study xtreme --output runs/xtreme --config qwen3-1.7b llama-3.2-3b     # two models, one table
    logitbank study xtreme --output runs/small --model PATH_OR_HUB_ID --train 200 --steps 60 --samples 20 \\
        data.mirror=DIR                                                              # another model, small

Shards that are written, students that are trained and cells that are evaluated are not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, make_directory, run_command
from logitbank.experiment import STUDENTS, STUDY_CONDITIONS
from logitbank.scripts.arguments import (
    Model,
    Size,
    add_models,
    add_output,
    add_processes,
    add_size,
    models_of,
    settings_of,
)
from logitbank.scripts.ending import Ending
from logitbank.scripts.stages import Stages

PUBLISHED = Size(train=5000, steps=1000, samples=500)


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank study xtreme", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser)
    add_models(parser)
    add_size(parser, PUBLISHED)
    add_processes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_command(
        lambda: run(arguments.output, models_of(arguments), settings_of(arguments), arguments.processes), resumes=True
    )


def run(output: Path, models: Sequence[Model], settings: Sequence[str], processes: int | None = None) -> None:
    """Every model's stages, one after another, then the report.

    Raises:
        ConfigError: before anything starts, if a model's settings are wrong.
    """
    studies = stages_of(output, models, settings, processes)
    ending = Ending(output)
    make_directory("--output", output)
    for stages in studies:
        work = output / stages.name
        stages.build()
        stages.students(STUDENTS, work)
        stages.conditions(STUDY_CONDITIONS, work)
    ending.print()


def stages_of(
    output: Path, models: Sequence[Model], settings: Sequence[str], processes: int | None = None
) -> list[Stages]:
    """The stages of each model, with settings that are right.

    Raises:
        ConfigError: see `load_config`.
    """
    found = []
    for model in models:
        overrides, store = [*model.overrides, *settings], str(output / model.name / "store")
        found.append(Stages(model.name, model.files, overrides, store, output / "results", processes))
        _ = found[-1].config  # a wrong key of the last model is said before the first teacher runs
    return found
