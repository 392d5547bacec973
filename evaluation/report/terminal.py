"""Tables for a terminal: never wider than it is, cut into blocks of whole columns where they would be."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from logitbank.evaluation.report.table import Table, block_rows, column_blocks

GAP = 2  # spaces between columns, one of them the box's
WIDEST_LABEL = 32  # a longer row label is folded


def print_table(console: Console, table: Table) -> None:
    """Heading, the table in as many blocks as the console's width asks for, and notes."""
    console.print(Text(table.title, style="bold"))
    if table.rows:
        widths = [_width(table, column) for column in range(len(table.header))]
        for block in column_blocks([width + GAP for width in widths], console.width + GAP, table.groups):
            console.print(_block(table, block, widths))
            console.print()
    for note in table.notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2), expand=False))
    if table.notes:
        console.print()


def print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    """A heading and a list."""
    console.print(Text(title, style="bold"))
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def _block(table: Table, columns: Sequence[int], widths: Sequence[int]) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        shown.add_column(
            Text(table.header[column]),
            justify="left" if column == 0 else "right",
            overflow="fold",
            width=widths[column],
        )
    for row in block_rows(table, columns):
        shown.add_row(*(Text(row[column]) for column in columns))
    return shown


def _width(table: Table, column: int) -> int:
    """Of a column: its longest cell and the longest word of its header, which may take several lines."""
    words = max((cell_len(word) for word in table.header[column].split()), default=0)
    width = max(words, *(cell_len(row[column]) for row in table.rows))
    return min(width, WIDEST_LABEL) if column == 0 else width
