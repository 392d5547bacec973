"""Tables as text: Markdown that reads well in a terminal too, CSV, JSON, Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from logitbank.configs import ConfigError

MISSING = "—"
FORMATS = ("table", "markdown", "csv", "json", "parquet")


@dataclass(frozen=True)
class Table:
    """A table ready to be shown.

    Attributes:
        title: heading.
        header: column names; the first column holds row labels.
        rows: cells as text.
        notes: lines below the table.
        level: heading depth in a document.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    level: int = 2

    def markdown(self) -> str:
        """Heading, aligned table and notes."""
        lines = [f"{'#' * self.level} {self.title}", ""]
        if self.rows:
            lines += [markdown_table(self.header, self.rows), ""]
        for note in self.notes:
            lines += [note, ""]
        return "\n".join(lines)


def percent(value: float | None, *, signed: bool = False) -> str:
    """A fraction as a percentage with one decimal: 0.637 -> 63.7, signed +63.7; a missing one as —."""
    if value is None or math.isnan(value):
        return MISSING
    points = 100 * value + math.copysign(1e-9, value)  # halves away from zero, whatever binary makes of 72.95
    text = f"{points:+.1f}" if signed else f"{points:.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


def average(value: float | None, count: int, expected: int, *, signed: bool = False) -> str:
    """An average that says over how many of how many it goes where some are missing: `28.5 (17/28)`."""
    text = percent(value, signed=signed)
    return text if text == MISSING or count >= expected else f"{text} ({count}/{expected})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table with padded columns; the first column to the left, the others to the right."""
    cells = [[_escape(text) for text in row] for row in [header, *rows]]
    widths = [max(3, *(_width(row[column]) for row in cells)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        padded = [row[0] + " " * (widths[0] - _width(row[0]))]
        padded += [" " * (width - _width(text)) + text for text, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def write_answer(answer: pa.Table, form: str, output: Path | None) -> None:
    """Show a query's answer, or write it to a file.

    Raises:
        ConfigError: Parquet without a file, or a file that cannot be written.
    """
    if form == "parquet" and output is None:
        raise ConfigError("--format parquet: needs --output FILE")
    if output is None:
        if form == "table":
            _print_rich(answer)
        else:
            print(_as_text(answer, form), end="")
        return
    try:
        if form == "parquet":
            pq.write_table(answer, output, compression="zstd")
        else:
            output.write_text(_as_text(answer, "markdown" if form == "table" else form), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: cannot write {output}: {error.strerror or error}") from None


def _as_text(answer: pa.Table, form: str) -> str:
    columns = [column.to_pylist() for column in answer.columns]
    rows = list(zip(*columns, strict=True))
    if form == "markdown":
        return markdown_table(answer.column_names, [[_text(value) for value in row] for row in rows]) + "\n"
    if form == "csv":
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(answer.column_names)
        writer.writerows([["" if value is None else _plain(value) for value in row] for row in rows])
        return file.getvalue()
    records = [{name: _json_value(value) for name, value in zip(answer.column_names, row, strict=True)} for row in rows]
    return json.dumps(records, ensure_ascii=False, indent=2, default=str) + "\n"


def _print_rich(answer: pa.Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    numeric = [pa.types.is_integer(f.type) or pa.types.is_floating(f.type) for f in answer.schema]
    table = RichTable(box=box.SIMPLE_HEAD)
    for name, right in zip(answer.column_names, numeric, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in zip(*(column.to_pylist() for column in answer.columns), strict=True):
        table.add_row(*(Text(_text(value)) for value in row))
    Console(soft_wrap=False).print(table)
    print(f"{answer.num_rows} row{'' if answer.num_rows == 1 else 's'}")


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(_json_value(value), ensure_ascii=False, default=str)
    return str(value)


def _json_value(value: Any) -> Any:
    """Maps arrive as lists of pairs; NaN has no place in JSON."""
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        return {key: _json_value(item) for key, item in value}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _width(text: str) -> int:
    """Columns of a terminal that the text takes: CJK characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
