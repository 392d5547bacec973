"""`logitbank sample-answers`: let a model write answers to the training examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, run_command
from logitbank.configs.arguments import add_config_arguments, load


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank sample-answers",
        description="Generate answers to every training example with a model (sampling.model), for "
        "build-teacher-cache --answers. Run the same command to resume.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON lines of ids and answers; FILE.json records which model wrote them",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments), resumes=True)


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    config = load(arguments)
    from logitbank.evaluation.sampling import sample_answers  # torch and transformers: not for --help

    sample_answers(config, output=arguments.output)


if __name__ == "__main__":
    main()
