"""All standing tables, in reading order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitbank.evaluation.report.checkpoints import checkpoint_tables
from logitbank.evaluation.report.class_table import class_tables
from logitbank.evaluation.report.conditions import condition_tables
from logitbank.evaluation.report.cross_entropy import cross_entropy_table
from logitbank.evaluation.report.lambda_table import learned_lambda_table, sweep_tables
from logitbank.evaluation.report.likelihood_table import likelihood_tables
from logitbank.evaluation.report.markdown import markdown_section
from logitbank.evaluation.report.overview import overview_tables
from logitbank.evaluation.report.position_table import position_tables
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.summary import summary_lines, summary_tables
from logitbank.evaluation.report.table import Table
from logitbank.evaluation.report.transfer import transfer_tables

if TYPE_CHECKING:  # takes a thirtieth of a second to import
    from rich.console import Console


def standing_tables(results: Results, *, cells: bool = True) -> list[Table]:
    """Every table that has something to show.

    Args:
        results: what they show.
        cells: whether tables of single cells, one for each condition and task, are among them.
    """
    return [
        *summary_tables(results),
        *overview_tables(results),
        *likelihood_tables(results),
        *class_tables(results),
        *position_tables(results),
        *transfer_tables(results),
        *checkpoint_tables(results),
        *sweep_tables(results),
        *learned_lambda_table(results),
        *cross_entropy_table(results),
        *(condition_tables(results) if cells else []),
    ]


def print_markdown(results: Results, *, cells: bool) -> None:
    """The tables as Markdown on standard output, then the summary in words."""
    for table in standing_tables(results, cells=cells):
        print(markdown_section(table))
    print("\n".join(["## In short", "", *(f"- {line}" for line in summary_lines(results))]))


def print_terminal(results: Results, *, cells: bool, console: Console | None = None) -> None:
    """The tables within the width of a terminal, then the summary in words."""
    from rich.console import Console  # only terminals need it

    from logitbank.evaluation.report.terminal import print_lines, print_table

    console = console or Console(highlight=False)
    for table in standing_tables(results, cells=cells):
        print_table(console, table)
    if not cells:
        console.print("--cells also prints each condition's scores by task and language.", style="dim")
    print_lines(console, "In short", summary_lines(results))
