"""`logitbank COMMAND …` and `python -m logitbank COMMAND …`: every command under one name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from logitbank import __version__
from logitbank.command import CommandParser

# name -> (module whose `main` it is, what it does)
COMMANDS = {
    "build-teacher-cache": ("logitbank.teacher_cache.build_command", "run a teacher once and fill a store"),
    "inspect-cache": ("logitbank.teacher_cache.inspection.command", "what a store holds, and whether it is sound"),
    "train-student": ("logitbank.student_train.train_command", "train a student from a store"),
    "evaluate-model": ("logitbank.evaluation.evaluate_command", "let a model answer, and score the answers"),
    "query-results": ("logitbank.evaluation.query_command", "tables, SQL and reports over results"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items())
    parser = CommandParser(
        prog="logitbank",
        description="Run the teacher once; train every student from its cached logits.",
        epilog=f"commands:\n{listing}\n\nlogitbank COMMAND --help lists the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"logitbank {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="of the command")
    given = parser.parse_args(argv)
    module, _ = COMMANDS[given.command]
    sys.argv[0] = given.command  # as the console script of that name would have it
    importlib.import_module(module).main(given.arguments)


if __name__ == "__main__":
    main()
