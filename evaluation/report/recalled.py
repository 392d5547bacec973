"""Bootstrap replicates that an earlier process made of the same result files, by the same code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import logitbank.evaluation.report
import logitbank.tasks
from logitbank.evaluation.report.intervals import Replicates, load_replicates
from logitbank.evaluation.report.statistics import BOOTSTRAPPED, array_of, lists_of
from logitbank.storage.results import Catalogue
from logitbank.tasks import TASKS

MADE_OF = ("scores", "final_scores", "metrics", "example_statistics")
CODE = (logitbank.evaluation.report, logitbank.tasks)
SCHEMA = pa.schema(
    [("kind", pa.string()), ("cell", pa.string()), ("name", pa.string()), ("numbers", pa.list_(pa.float64()))]
)


def recall_replicates(catalogue: Catalogue, metrics: Sequence[str] = ()) -> Replicates:
    """What `load_replicates` makes, made once where there are many files.

    Only of tasks that the package brings: of others the files do not say what code their metrics are.
    """
    tasks = catalogue.rows(f"SELECT DISTINCT task FROM metrics WHERE {BOOTSTRAPPED} ORDER BY task")
    if not {row["task"] for row in tasks} <= set(TASKS.shipped):
        return load_replicates(catalogue, metrics)
    made: list[Replicates] = []  # the process that makes them needs no round trip

    def make() -> pa.Table:
        made.append(load_replicates(catalogue, metrics))
        return as_table(made[0])

    table = catalogue.remembered(f"replicates of {' '.join(metrics)} by {_code()}", MADE_OF, make)
    return made[0] if made else from_table(table)


def as_table(replicates: Replicates) -> pa.Table:
    """All that replicates hold, a number or a list of numbers in each row."""
    rows: list[tuple[str, Sequence[Any], Any, Any]] = [
        *(("cell", cell, metric, values) for (cell, metric), values in replicates.by_cell.items()),
        *(("step", cell, step, values) for (cell, step), values in replicates.by_step.items()),
        *(("value", cell, metric, [value]) for (cell, metric), value in replicates.values.items()),
        *(("examples", cell, digest, [replicates.sizes[cell]]) for cell, digest in replicates.examples.items()),
        *(("continuous", cell, "", []) for cell in sorted(replicates.continuous)),
    ]
    columns = [
        [kind for kind, *_ in rows],
        [json.dumps(cell) for _, cell, *_ in rows],
        [str(name) for _, _, name, _ in rows],
        [numbers for *_, numbers in rows],
    ]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def from_table(table: pa.Table) -> Replicates:
    """The replicates that `as_table` was given."""
    found = Replicates()
    kinds, cells, names = (table[name].to_pylist() for name in SCHEMA.names[:3])
    for kind, text, name, values in zip(kinds, cells, names, lists_of(table["numbers"], float), strict=True):
        cell, numbers = tuple(json.loads(text)), array_of(values)
        if kind == "cell":
            found.by_cell[cell, name] = numbers
        elif kind == "step":
            found.by_step[cell, int(name)] = numbers
        elif kind == "value":
            found.values[cell, name] = float(numbers[0])
        elif kind == "examples":
            found.examples[cell], found.sizes[cell] = name, int(numbers[0])
        else:
            found.continuous.add(cell)
    return found


def _code() -> str:
    """A hash of the code that makes replicates."""
    digest = hashlib.sha256()
    for package in CODE:
        for place in package.__path__:
            for file in sorted(Path(place).rglob("*.py")):
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
