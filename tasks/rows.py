"""Rows of a data set as tasks see them, and the examples that tasks make of them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from logitbank.errors import TaskError, counted
from logitbank.tasks.common import Example, Task


class ColumnError(TaskError):
    """A row without a column that a task asked for."""


class _NoColumn(KeyError):
    """A task asked for a column that the data set has not."""


class _NoValue(KeyError):
    """A task asked for a value that the row has not."""


class Row(Mapping[str, Any]):
    """A row that tells a missing column from a missing value; `get` gives its default for both."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, column: str) -> Any:
        if column not in self._values:
            raise _NoColumn(column)
        if _lacks_value(self._values[column]):
            raise _NoValue(column)
        return self._values[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _lacks_value(value: Any) -> bool:
    """Whether it is None, or a list or mapping that holds None."""
    if isinstance(value, Mapping):
        return any(map(_lacks_value, value.values()))
    return value is None or (isinstance(value, list) and any(map(_lacks_value, value)))


def example_of(task: Task, row: Row, language: str, example_id: str, place: str) -> Example | None:
    """The example of a row, None if it lacks something; `place` names the row in errors."""
    try:
        return task.to_example(row, language, example_id)
    except _NoValue:
        return None
    except _NoColumn as error:
        raise ColumnError(f"{place}: expected a column {error}, got {', '.join(row)}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaskError(
            f"{place}: {task.name} cannot read it: {type(error).__name__}: {error}; compare the columns with the task"
        ) from error


class Unusable:
    """Rows that were left out: how many, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[int] = []

    def add(self, index: int) -> None:
        """Count a row."""
        self.count += 1
        self._first = heapq.nsmallest(3, [*self._first, index])

    def __str__(self) -> str:
        """`1 row (17)`, `5 rows (3, 17, 20 …)`."""
        first = ", ".join(map(str, self._first)) + (" …" if self.count > len(self._first) else "")
        return f"{counted(self.count, 'row')} ({first})"


def label_names(rows: Any) -> dict[str, list[str]]:
    """Columns that hold class labels, or lists of them, with the names of their classes."""
    found = {}
    for column, feature in rows.features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[column] = list(names)
    return found


def with_label_names(row: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The row with its class labels as names; -1, the hub's missing label, stays."""
    named = dict(row)
    for column, names in labels.items():
        value = row[column]
        if isinstance(value, list):
            named[column] = [_class_name(item, names) for item in value]
        else:
            named[column] = _class_name(value, names)
    return named


def _class_name(value: Any, names: Sequence[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
