"""`train-student`: train one student from a teacher store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, run_command
from logitbank.configs.arguments import add_config_arguments, load
from logitbank.student_train.records import Run
from logitbank.student_train.train import train


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    parser = CommandParser(
        prog="train-student",
        description="Train a student from a teacher store, by cross-entropy and the teacher's cached logits.",
        epilog="Several processes or GPUs: accelerate launch -m logitbank train-student …",
    )
    add_config_arguments(parser)
    parser.add_argument("--store", required=True, metavar="URL", help="teacher store: directory or fsspec URL")
    parser.add_argument("--view", required=True, help="teacher view to distil from, or 'none' for cross-entropy alone")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where checkpoints go")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint in --output")
    parser.add_argument("--results", type=Path, metavar="DIR", help="result rows (default: OUTPUT/results)")
    arguments = parser.parse_intermixed_args(argv)

    def body() -> None:
        run = Run(
            config=load(arguments),
            store_url=arguments.store,
            view=None if arguments.view == "none" else arguments.view,
            output=arguments.output,
            results=arguments.results or arguments.output / "results",
            resume=arguments.resume,
        )
        train(run)

    run_command(body)


if __name__ == "__main__":
    main()
