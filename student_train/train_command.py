"""`train-student`: train one student from a teacher store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, run_command
from logitbank.configs.arguments import add_config_arguments, load

ROWS = ("train", "external", "all")  # of a label store


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="train-student",
        description="Train a student from a teacher store, by cross-entropy and the teacher's cached logits.",
        epilog="Several processes or GPUs: accelerate launch -m logitbank train-student …",
    )
    add_config_arguments(parser)
    parser.add_argument("--store", required=True, metavar="URL", help="teacher or label store: directory or fsspec URL")
    parser.add_argument(
        "--view",
        required=True,
        action="append",
        help="teacher view to distil from, or 'none' for cross-entropy alone; repeat it to average views of a label "
        "store",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="directory for checkpoints; an unfinished run with the same settings is resumed",
    )
    parser.add_argument(
        "--resume", action="store_true", help="accepted for compatibility; unfinished runs are always resumed"
    )
    parser.add_argument(
        "--held-out-fold",
        type=int,
        metavar="K",
        help="tasks=[preference]: hold out the rows of this fold",
    )
    parser.add_argument(
        "--rows",
        choices=ROWS,
        help="tasks=[preference]: train on the rows of the training split, of external files, or all (default)",
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="directory for result rows (default: OUTPUT/results)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments))


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    config = load(arguments, any_task=True)
    from logitbank.student_train.stage import train  # torch and transformers: not for --help

    train(
        config,
        store=arguments.store,
        view=arguments.view,
        output=arguments.output,
        results=arguments.results,
        held_out_fold=arguments.held_out_fold,
        rows=arguments.rows,
    )


if __name__ == "__main__":
    main()
