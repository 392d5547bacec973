"""`train-student`: train one student from a teacher store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, run_command
from logitbank.configs.arguments import add_config_arguments, load
from logitbank.errors import ConfigError
from logitbank.experiment import NO_VIEW, view_of_argument
from logitbank.preference import TASK as PREFERENCE

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
        help="where checkpoints go; an unfinished run of the same settings in it is resumed",
    )
    parser.add_argument("--resume", action="store_true", help="accepted: an unfinished run is resumed without it too")
    parser.add_argument(
        "--held-out-fold",
        type=int,
        metavar="K",
        help="tasks=[preference]: leave out the rows of this fold",
    )
    parser.add_argument(
        "--rows",
        choices=ROWS,
        help="tasks=[preference]: learn from the rows of the training split, of external files, or all (default)",
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="result rows (default: OUTPUT/results)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = make_parser().parse_intermixed_args(argv)

    def body() -> None:
        config = load(arguments, any_task=True)  # the store says which tasks it has
        view = _view(arguments.view)
        if not config.is_preference:
            _refuse_options_of_comparisons(arguments)
        from logitbank.student_train.records import Run  # torch and transformers: not for --help

        run = Run(
            config=config,
            store_url=arguments.store,
            view=view,
            output=arguments.output,
            results=arguments.results or arguments.output / "results",
            held_out_fold=arguments.held_out_fold,
            rows=(arguments.rows or "all") if config.is_preference else None,
        )
        if config.is_preference:
            from logitbank.student_train.classifier.train import train_classifier

            train_classifier(run)
        else:
            from logitbank.student_train.train import train

            train(run)

    run_command(body)


def _view(given: Sequence[str]) -> str | None:
    """The views as a run names them: joined by `+`, or None for cross-entropy alone.

    Raises:
        ConfigError: `none` among others.
    """
    if len(given) > 1 and NO_VIEW in given:
        raise ConfigError(f"--view: {NO_VIEW} is cross-entropy alone; expected it by itself, got {', '.join(given)}")
    return view_of_argument("+".join(given))


def _refuse_options_of_comparisons(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that only comparisons have."""
    if len(arguments.view) > 1:
        raise ConfigError(
            f"--view: only the views of a label store (tasks=[{PREFERENCE}]) are averaged; expected one, got "
            f"{', '.join(arguments.view)}"
        )
    for option, given in (("--held-out-fold", arguments.held_out_fold), ("--rows", arguments.rows)):
        if given is not None:
            raise ConfigError(f"{option}: only label stores (tasks=[{PREFERENCE}]) have these; leave it out")


if __name__ == "__main__":
    main()
