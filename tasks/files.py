"""Rows of files that a configuration names: JSON lines, streamed, each with its place for messages."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from logitbank.errors import TaskError


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        values: column -> value.
        file: as messages call it.
        number: of the line or row, from 1.
        unit: what the number counts: `line` or `row`.
    """

    values: Mapping[str, Any]
    file: str
    number: int
    unit: str = "line"

    @property
    def place(self) -> str:
        """`train.jsonl, line 17`."""
        return f"{self.file}, {self.unit} {self.number:,}"


def open_rows(key: str, name: str) -> Iterator[Row]:
    """The rows of a file, one at a time.

    Args:
        key: the configuration key that names it, for messages.
        name: path or URL.

    Raises:
        TaskError: a file that cannot be opened, or a line that is no JSON object.
    """
    file = shlex.quote(name)
    try:
        opened = fsspec.open(name, "rb", compression="infer").open()
    except (OSError, ValueError) as error:
        raise TaskError(f"{key}: {file} cannot be opened: {error}") from None
    with opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise TaskError(f"{key}: {file}, line {number:,}: not valid JSON: {error}") from None
            if not isinstance(values, dict):
                raise TaskError(f"{key}: {file}, line {number:,}: expected a JSON object, got {type(values).__name__}")
            yield Row(values, file, number)
