"""Answers to SQL queries: a table in the terminal, Markdown, CSV, JSON, Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from logitbank.errors import ConfigError, OutputError, counted
from logitbank.evaluation.report.markdown import markdown_table
from logitbank.evaluation.report.table import MISSING


def write_answer(answer: pa.Table, form: str, output: Path | None) -> None:
    """Show a query's answer, or write it to a file.

    Args:
        answer: what the query gave.
        form: `table`, `markdown`, `csv`, `json` or `parquet`.
        output: the file; None prints.

    Raises:
        ConfigError: Parquet without a file.
        OutputError: a file that cannot be written.
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
        raise OutputError(f"--output: cannot write {output}: {error.strerror or error}") from None


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
    numeric = [pa.types.is_integer(f.type) or pa.types.is_floating(f.type) for f in answer.schema]
    table = RichTable(box=box.SIMPLE_HEAD)
    for name, right in zip(answer.column_names, numeric, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in zip(*(column.to_pylist() for column in answer.columns), strict=True):
        table.add_row(*(Text(_text(value)) for value in row))
    Console(soft_wrap=False).print(table)
    print(counted(answer.num_rows, "row"))


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
