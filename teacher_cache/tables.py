"""Tables on standard output: folded to the width of a terminal, Markdown where another program reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNLIMITED = 10_000  # columns; a line that another program reads is never folded


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, totals: int = 0) -> None:
    """Print a table in which nothing is cut off: what does not fit is folded.

    Args:
        header: names of the columns, folded between words.
        rows: cells as text.
        left: so many columns are aligned to the left, the others to the right.
        totals: so many rows at the end are set apart.
    """
    terminal = sys.stdout.isatty()
    table = Table(
        box=box.SIMPLE_HEAD if terminal else box.MARKDOWN,
        show_edge=not terminal,
        pad_edge=not terminal,
        padding=(0, 1, 0, 0) if terminal else (0, 1),
    )
    for number, name in enumerate(header):
        longest = max(map(len, name.split()), default=1)
        table.add_column(
            Text(_plain(name, terminal)),
            justify="left" if number < left else "right",
            overflow="fold",
            min_width=longest if number >= left else None,
        )
    for number, row in enumerate(rows):
        if terminal and totals and number == len(rows) - totals:
            table.add_section()
        table.add_row(*(Text(_plain(cell, terminal)) for cell in row))
    Console(file=sys.stdout, width=None if terminal else UNLIMITED).print(table)


def _plain(text: str, terminal: bool) -> str:
    """A bar would end a cell of a Markdown table."""
    return text if terminal else text.replace("|", "\\|")
