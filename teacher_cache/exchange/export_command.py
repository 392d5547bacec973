"""logitbank export: write a view of a store as Parquet rows that other toolkits read.

    logitbank export runs/store --view fewshot --output runs/rows
    logitbank export hf://datasets/ORG/NAME --view fewshot --output runs/kd --format axolotl

Run an interrupted export again to resume it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, positive, run_command
from logitbank.registry import EXPORT_LAYOUTS


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", metavar="STORE", help="directory or URL of a store")
    parser.add_argument("--view", required=True, metavar="VIEW", help="view to export")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory for the Parquet files")
    parser.add_argument("--format", choices=EXPORT_LAYOUTS, default="plain", help="layout of the rows (default: plain)")
    parser.add_argument("--top-k", type=positive(int), metavar="K", help="ranks of each row (default: all)")
    parser.add_argument("--logits", action="store_true", help="plain: raw logits instead of log-probabilities")
    parser.add_argument(
        "--normalized",
        choices=("vocabulary", "top-k"),
        default="top-k",
        help="axolotl: what the probabilities of a row sum to 1 over (default: top-k, like its loaders)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments), resumes=True)


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    from logitbank.storage import TeacherStore  # zarr and the rest: not for --help
    from logitbank.teacher_cache.exchange.export_layouts import ExportOptions
    from logitbank.teacher_cache.exchange.exporting import export_view

    options = ExportOptions(
        view=arguments.view,
        layout=arguments.format,
        top_k=arguments.top_k,
        logits=arguments.logits,
        normalized=arguments.normalized,
    )
    store = TeacherStore.open(arguments.store, cache_bytes=0)  # each shard is read once
    exported = export_view(store, arguments.output, options)
    print(exported.describe())


if __name__ == "__main__":
    main()
