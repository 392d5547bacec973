"""Tables as Markdown that reads well as plain text too."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from logitbank.evaluation.report.table import Table


def markdown_section(table: Table) -> str:
    """Heading, aligned table and notes."""
    lines = [f"{'#' * table.level} {table.title}", ""]
    if table.rows:
        lines += [markdown_table(table.header, table.rows), ""]
    for note in table.notes:
        lines += [note, ""]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table with padded columns; the first column to the left, the others to the right."""
    cells = [[_escape(text) for text in row] for row in [header, *rows]]
    widths = [max(3, *(cell_len(row[column]) for row in cells)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        padded = [row[0] + " " * (widths[0] - cell_len(row[0]))]
        padded += [" " * (width - cell_len(text)) + text for text, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
