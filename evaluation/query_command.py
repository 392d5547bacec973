"""`query-results`: tables, SQL and reports over result files."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logitbank.command import CommandParser, run_command
from logitbank.errors import ConfigError, StoreError

if TYPE_CHECKING:  # DuckDB, pyarrow and numpy come after the arguments
    from logitbank.storage.results import Catalogue

logger = logging.getLogger(__name__)

FORMATS = ("table", "markdown", "csv", "json", "parquet")
SCALES = ("percent", "fraction")
ENSEMBLES = ("equal", "cv")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = make_parser().read(argv)
    with _without_collection(short=arguments.command != "shell" and arguments.memory is None):
        run_command(lambda: perform(arguments))


@contextlib.contextmanager
def _without_collection(*, short: bool) -> Iterator[None]:
    """Where the command is short and memory is not, nothing looks for cycles: a tenth of its time."""
    collected = gc.isenabled()
    if short:
        gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="query-results", description="Query results with SQL, or show them as tables and reports."
    )
    parser.add_argument(
        "--results", required=True, action="append", type=Path, metavar="DIR", help="result directory; can be repeated"
    )
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="URL",
        help="teacher or label store, for the views cache_* and oof; can be repeated",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory limit, such as 512MB or 4GB (default: what the machine has)"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    sql = commands.add_parser("sql", help="run one SQL query (DuckDB dialect) on the views")
    sql.add_argument("query", help="for example: SELECT * FROM cells")
    sql.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    sql.add_argument("--output", type=Path, metavar="FILE", help="write to a file instead of the terminal")

    commands.add_parser("shell", help="open an SQL shell with completion of views and columns")

    tables = commands.add_parser("tables", help="print the standard tables, with the summary at both ends")
    tables.add_argument("--cells", action="store_true", help="also print each condition's scores by task and language")
    tables.add_argument(
        "--markdown", action="store_true", help="print Markdown even in a terminal (pipes always get Markdown)"
    )

    report = commands.add_parser("report", help="write tables, pictures and examples to FILE.md and FILE.html")
    report.add_argument("--output", required=True, type=Path, metavar="FILE.md")

    figure = commands.add_parser("figure", help="draw the score of each condition in every task, with intervals")
    figure.add_argument(
        "--model", metavar="NAME", help="model whose conditions are drawn, as in the tables (default: the only one)"
    )
    figure.add_argument(
        "--output", required=True, type=Path, metavar="FILE.svg", help="the drawing, as .svg, .png or .pdf"
    )

    submission = commands.add_parser("submission", help="write class probabilities of the test comparisons as CSV")
    submission.add_argument(
        "--ensemble",
        choices=ENSEMBLES,
        default="equal",
        help="weights when several runs are averaged: equal, or 1/log loss of each run on the fold it left out "
        "(default: equal)",
    )
    which = submission.add_mutually_exclusive_group()
    which.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME",
        help="condition whose runs are used; can be repeated (default: the only condition on the test split)",
    )
    which.add_argument("--run", action="append", default=[], metavar="RUN", help="a run; can be repeated")
    submission.add_argument(
        "--record", metavar="NAME", help="also write the average to --results, where tables show it as condition NAME"
    )
    submission.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE.csv",
        help="FILE.csv.json beside it records what it was made from",
    )

    published = commands.add_parser("import", help="import published numbers from a CSV file")
    published.add_argument("file", type=Path, metavar="FILE.csv")
    published.add_argument(
        "--model", metavar="NAME", help="model name if the file has no column model (default: the file's name)"
    )
    published.add_argument("--scale", choices=SCALES, help="default: percent if any value is above 1")
    return parser


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    if arguments.command == "import":
        _import(arguments)
        return
    catalogue = _open(arguments)
    if arguments.command == "sql":
        from logitbank.evaluation.report.answers import write_answer

        answer = catalogue.query(arguments.query)
        _warn(catalogue)
        write_answer(answer, arguments.format, arguments.output)
    elif arguments.command == "shell":
        from logitbank.evaluation.shell import run_shell

        catalogue.read()
        _warn(catalogue)
        run_shell(catalogue)
    elif arguments.command == "tables":
        _tables(catalogue, arguments)
    elif arguments.command == "submission":
        _submission(catalogue, arguments)
    elif arguments.command == "figure":
        from logitbank.evaluation.report.figure import write_figure
        from logitbank.evaluation.report.results import Results

        write_figure(Results.load(catalogue), arguments.output, arguments.model)
        _warn(catalogue)
        print(f"wrote {arguments.output}")
    elif arguments.command == "report":
        from logitbank.evaluation.report.write import write_report

        *_, markdown, page = write_report(catalogue, arguments.output)
        _warn(catalogue)
        print(f"wrote {markdown} and {page}")


def _import(arguments: argparse.Namespace) -> None:
    from logitbank.evaluation.import_csv import import_csv

    if len(arguments.results) != 1:
        raise ConfigError(f"--results: import writes to one directory, got {len(arguments.results)}")
    groups, cells = import_csv(arguments.file, arguments.results[0], model=arguments.model, scale=arguments.scale)
    if cells:
        print(f"imported {cells} cells of {groups} models and conditions from {arguments.file}")
    else:
        print(f"{arguments.file}: already imported, nothing changed")


def _submission(catalogue: Catalogue, arguments: argparse.Namespace) -> None:
    from logitbank.evaluation.recorded_ensemble import record_ensemble, require_name
    from logitbank.evaluation.submission import make_submission, said_of, write_submission

    if arguments.record is not None:
        require_name(arguments.record)
    which = {"conditions": arguments.condition, "runs": arguments.run}
    submission = make_submission(catalogue, arguments.results, arguments.ensemble, **which)
    _warn(catalogue)
    if arguments.record is not None:
        run = record_ensemble(submission, catalogue, arguments.results, arguments.ensemble, arguments.record)
        print(f"recorded as condition {arguments.record}: {run}")
    beside = write_submission(submission, arguments.ensemble, arguments.output)
    print("\n".join(said_of(submission, arguments.output, beside)))


def _open(arguments: argparse.Namespace) -> Catalogue:
    if arguments.memory is not None:  # before pyarrow is imported: its own allocator reserves a gigabyte
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from logitbank.storage.results import Catalogue, parse_memory

    memory = None if arguments.memory is None else parse_memory(arguments.memory)
    return Catalogue(arguments.results, arguments.store, memory=memory)


def _warn(catalogue: Catalogue) -> None:
    for path in catalogue.torn:
        logger.warning("warning: %s is damaged and skipped; delete it and run its command again", path)


def _tables(catalogue: Catalogue, arguments: argparse.Namespace) -> None:
    from logitbank.evaluation.report.results import Results
    from logitbank.evaluation.report.standing import print_markdown, print_terminal

    results = Results.load(catalogue)
    _warn(catalogue)
    if not results.task_averages:
        raise StoreError(
            f"--results: no metrics in {', '.join(map(str, arguments.results))}; run evaluate-model or query-results "
            "import first"
        )
    if arguments.markdown or not sys.stdout.isatty():
        print_markdown(results, cells=arguments.cells)
    else:
        print_terminal(results, cells=arguments.cells)


if __name__ == "__main__":
    main()
