"""`query-results`: tables, SQL and reports over result files."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, run_command
from logitbank.configs import ConfigError
from logitbank.evaluation.import_csv import SCALES, import_csv
from logitbank.evaluation.report.render import FORMATS, write_answer
from logitbank.evaluation.report.result_tables import all_tables
from logitbank.evaluation.shell import run_shell
from logitbank.storage.results.catalogue import Catalogue

logger = logging.getLogger(__name__)


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(prog="query-results", description=__doc__)
    parser.add_argument(
        "--results", required=True, action="append", type=Path, metavar="DIR", help="result directory; may be repeated"
    )
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="URL",
        help="teacher store, for the views cache_*; may be repeated",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    sql = commands.add_parser("sql", help="run one SQL query (DuckDB's dialect) over the views")
    sql.add_argument("query", help="for example: SELECT * FROM cells")
    sql.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    sql.add_argument("--output", type=Path, metavar="FILE", help="write to a file instead of the terminal")

    commands.add_parser("shell", help="type SQL, see tables")

    commands.add_parser("tables", help="all standing tables, as Markdown")

    report = commands.add_parser("report", help="write tables, plots and examples: FILE.md and FILE.html")
    report.add_argument("--output", required=True, type=Path, metavar="FILE.md")

    published = commands.add_parser("import", help="bring in published numbers from a CSV file")
    published.add_argument("file", type=Path, metavar="FILE.csv")
    published.add_argument(
        "--model", metavar="NAME", help="where the file has no column model; default the file's name"
    )
    published.add_argument("--scale", choices=SCALES, help="default: percent where any value is above 1")

    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = make_parser().parse_args(argv)
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "import":
        _import(arguments)
        return
    catalogue = _open(arguments)
    if arguments.command == "sql":
        write_answer(catalogue.query(arguments.query), arguments.format, arguments.output)
    elif arguments.command == "shell":
        run_shell(catalogue)
    elif arguments.command == "tables":
        print(_document(catalogue, arguments.results), end="")
    elif arguments.command == "report":
        from logitbank.evaluation.report.write import write_report  # matplotlib, where it is installed

        *_, markdown, page = write_report(catalogue, arguments.output)
        print(f"wrote {markdown} and {page}")


def _import(arguments: argparse.Namespace) -> None:
    if len(arguments.results) != 1:
        raise ConfigError(f"--results: import writes into one directory, got {len(arguments.results)}")
    groups, cells = import_csv(arguments.file, arguments.results[0], model=arguments.model, scale=arguments.scale)
    if cells:
        print(f"imported {cells} cells of {groups} models and conditions from {arguments.file}")
    else:
        print(f"{arguments.file}: imported already, nothing changed")


def _open(arguments: argparse.Namespace) -> Catalogue:
    catalogue = Catalogue(arguments.results, arguments.store)
    for path in catalogue.torn:
        logger.warning("warning: %s is torn and left out; delete it and run its command again", path)
    return catalogue


def _document(catalogue: Catalogue, directories: Sequence[Path]) -> str:
    tables = all_tables(catalogue)
    if not tables:
        raise ConfigError(
            f"--results: no metric in {', '.join(map(str, directories))}; "
            "evaluate-model or query-results import write them"
        )
    return "\n".join(table.markdown() for table in tables)


if __name__ == "__main__":
    main()
