"""What every table is made of, and how numbers become text in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from logitbank.evaluation.report.intervals import Interval
from logitbank.evaluation.report.units import MISSING, PERCENT, Unit

UNRESOLVED = "≈0"
LOPSIDED = 1.5  # one arm of an interval this many times the other is shown by its bounds


@dataclass(frozen=True)
class Table:
    """A table ready to be shown.

    Attributes:
        title: heading.
        header: column names; the first column holds row labels.
        rows: cells as text.
        notes: lines below the table.
        level: heading depth in a document.
        groups: columns at which a new group begins; a table too wide for its place is cut there first.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    level: int = 2
    groups: Sequence[int] = field(default_factory=tuple)


def column_blocks(widths: Sequence[int], limit: int, groups: Sequence[int] = ()) -> list[list[int]]:
    """Columns of each of the blocks that a wide table is cut into, the first column leading every block.

    A block holds at least one column beside the first, however wide. Where not everything fits into one block,
    a group starts a block of its own unless it fits whole into the one before.

    Args:
        widths: of each column, with what separates it from the next.
        limit: width that a block should not exceed.
        groups: columns at which groups begin.
    """
    edges = [1, *(edge for edge in groups if 1 < edge < len(widths)), len(widths)]
    blocks: list[list[int]] = [[0]]
    used = widths[0]
    for start, end in itertools.pairwise(edges):
        if len(blocks[-1]) > 1 and used + sum(widths[start:end]) > limit:
            blocks.append([0])
            used = widths[0]
        for column in range(start, end):
            if len(blocks[-1]) > 1 and used + widths[column] > limit:
                blocks.append([0])
                used = widths[0]
            blocks[-1].append(column)
            used += widths[column]
    return blocks


def block_rows(table: Table, columns: Sequence[int]) -> list[Sequence[str]]:
    """The rows of a block of columns: all of a whole table, of a part those that have something in it."""
    whole = len(columns) == len(table.header)
    return [row for row in table.rows if whole or any(row[column] != MISSING for column in columns[1:])]


def percent(value: float | None, *, signed: bool = False) -> str:
    """A fraction as a percentage with one decimal: 0.637 -> 63.7, signed +63.7; a missing one as —."""
    return PERCENT.text(value, signed=signed)


def average(value: float | None, count: int, expected: int, *, signed: bool = False, unit: Unit = PERCENT) -> str:
    """An average that says over how many of how many it goes where some are missing: `28.5 (17/28)`."""
    text = unit.text(value, signed=signed)
    return text if text == MISSING or count >= expected else f"{text} ({count}/{expected})"


def with_interval(text: str, value: float | None, found: Interval | None, unit: Unit = PERCENT) -> str:
    """A score with its interval: `56.7 ±4.3`, or `98.0 [92.9, 99.7]` where the interval is lopsided.

    The interval reaches to the score: of a mean over cells that are all at 0 or at 1, Jeffreys' draws stay inside, and
    the end at the bound is the bound (Brown, Cai and DasGupta, 2001). The text alone if there are no predictions to
    bootstrap.
    """
    if text == MISSING or value is None or found is None:
        return text
    found = replace(found, low=min(found.low, value), high=max(found.high, value))
    return f"{text} {_uncertainty(value, found, unit, lowest=0.0, signed=False)}"


def difference_with_interval(text: str, value: float | None, found: Interval | None, unit: Unit = PERCENT) -> str:
    """A difference with its interval, and `≈0` where that contains zero; `+1.2 ±?` without predictions to pair."""
    if text == MISSING or value is None:
        return text
    if found is None:
        return f"{text} ±?"
    mark = "" if found.excludes_zero else f" {UNRESOLVED}"
    return f"{text} {_uncertainty(value, found, unit, lowest=-unit.highest, signed=True)}{mark}"


def _uncertainty(value: float, found: Interval, unit: Unit, *, lowest: float, signed: bool) -> str:
    below, above, half = value - found.low, found.high - value, found.half_width
    lopsided = min(below, above) * LOPSIDED < max(below, above)
    if lopsided or value - half < lowest or value + half > unit.highest:
        return f"[{unit.text(found.low, signed=signed)}, {unit.text(found.high, signed=signed)}]"
    return f"±{unit.text(half)}"
