"""inspect-cache: what a store holds, whether it is sound, and single examples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, make_directory, run_command
from logitbank.errors import ConfigError


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(prog="inspect-cache", description=__doc__)
    parser.add_argument("--store", required=True, metavar="URL", help="directory or fsspec URL of the store")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--verify", action="store_true", help="check every byte and every number")
    instead.add_argument("--example", metavar="ID", help="show one example token by token, or one comparison")
    instead.add_argument("--plot", type=Path, metavar="DIR", help="also write histograms and a bar chart to PNG files")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments))


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    from logitbank.storage import LabelStore, TeacherStore, is_label_store  # zarr and the rest: not for --help
    from logitbank.teacher_cache.inspection import labels, plots, show
    from logitbank.teacher_cache.inspection.example import show_example
    from logitbank.teacher_cache.inspection.summary import Inspection

    if arguments.verify:
        show.show_verification(arguments.store, arguments.format)
    elif is_label_store(arguments.store):
        if arguments.plot is not None:
            raise ConfigError(f"--plot: needs a teacher store of tokens, but {arguments.store} holds labels")
        store = LabelStore.open(arguments.store)
        if arguments.example:
            labels.show_pair(store, arguments.example, arguments.format)
        else:
            labels.show_labels(store, arguments.format)
    elif arguments.example:
        show_example(TeacherStore.open(arguments.store), arguments.example, arguments.format)
    else:
        tokens = TeacherStore.open(arguments.store)
        if arguments.plot is not None:  # before a large store is read for nothing
            plots.require_matplotlib()
            make_directory("--plot", arguments.plot)
        inspection = Inspection(tokens)
        show.show_summary(inspection, arguments.format)
        for path in plots.draw(inspection, arguments.plot) if arguments.plot is not None else ():
            print(path, file=sys.stderr if arguments.format == "json" else sys.stdout)


if __name__ == "__main__":
    main()
