"""The rows of files of another toolkit, in the layout that their columns say."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Generator, Iterator

from logitbank.errors import TaskError
from logitbank.registry import IMPORT_LAYOUTS
from logitbank.tasks.files import open_rows
from logitbank.teacher_cache.exchange.cells import Cells, cells_of, parquet_reader
from logitbank.teacher_cache.exchange.foreign import ForeignRow
from logitbank.teacher_cache.exchange.layouts import Layout, LayoutOptions, RowReader

FIRST_ROWS = 64  # from which the layout is told


class ForeignRows:
    """All rows, as often as they are asked for; every row has the layout of the first.

    Attributes:
        format: the layout's name.
        reader: of one row.
    """

    def __init__(self, format: str | None, options: LayoutOptions) -> None:
        """Look at the first rows.

        Args:
            format: key of `IMPORT_LAYOUTS`; None to tell from the columns.
            options: the files, and what the user says of them.

        Raises:
            TaskError: files that cannot be read, or columns of no layout, or of several.
        """
        self._options = options
        layouts: dict[str, Layout] = {name: IMPORT_LAYOUTS[name] for name in IMPORT_LAYOUTS}
        asked = layouts if format is None else {format: layouts[format]}
        self._wanted = sorted({column for layout in asked.values() for column in layout.columns(options)})
        cells = self._cells()
        first = list(itertools.islice(cells, FIRST_ROWS))
        cells.close()
        self.format = format or _format_of(first[0], layouts, options)
        self._wanted = sorted(layouts[self.format].columns(options))
        self._columns = self._known(first[0])
        for row in first:
            self._require_same(row)
        self.reader: RowReader = layouts[self.format].reader(first, options)

    def __iter__(self) -> Iterator[ForeignRow]:
        """Every row in order; TaskError if one does not have the layout of the first."""
        for row in self.cells():
            yield self.reader.read(row)

    def cells(self) -> Iterator[Cells]:
        """Every row before it is read."""
        for row in self._cells():
            self._require_same(row)
            yield row

    def _cells(self) -> Generator[Cells]:
        for name in self._options.files:
            for row in open_rows("import", name, split="train", parquet=parquet_reader(self._wanted)):
                yield cells_of(row, self._wanted)

    def _known(self, row: Cells) -> set[str]:
        return set(row.columns) & set(self._wanted)

    def _require_same(self, row: Cells) -> None:
        found = self._known(row)
        if found != self._columns:
            lacking = ", ".join(sorted(self._columns - found)) or "none"
            more = ", ".join(sorted(found - self._columns)) or "none"
            raise TaskError(
                f"{row.place}: expected the columns of the first row, got different ones (missing: {lacking}; new: "
                f"{more}); "
                "import files of one layout at a time"
            )


def _format_of(first: Cells, layouts: dict[str, Layout], options: LayoutOptions) -> str:
    found = [name for name, layout in layouts.items() if layout.recognises(first.columns, options)]
    if len(found) == 1:
        return found[0]
    if found:
        raise TaskError(f"{first.place}: has columns of several layouts ({', '.join(found)}); add --format")
    raise TaskError(
        f"{first.place}: expected the columns of a known layout ({', '.join(layouts)}), got "
        f"{_listed(first.columns)}; docs/sharing.md lists them"
    )


def _listed(columns: Collection[str]) -> str:
    return ", ".join(columns) or "none of their columns"
