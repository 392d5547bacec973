"""Files of an older schema version are read in today's columns, alone, among new ones and through the copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitbank.errors import StoreError
from logitbank.storage.results import SCHEMA_VERSION, SCHEMAS, Catalogue, compaction, read_rows, write_rows
from logitbank.storage.results.rows import VERSION_KEY, to_table

PREDICTION: dict[str, Any] = {
    **dict.fromkeys(("run", "model", "condition", "task", "language", "split", "method", "example_id"), "x"),
    **dict.fromkeys(("prompt_hash", "question", "output", "gold"), "x"),
    "demonstrations": 0,
    "score": 1.0,
    "statistics": {"correct": 1.0},
}
METRIC = {key: PREDICTION[key] for key in ("run", "model", "condition", "task", "language", "split", "method")}
METRIC |= {"metric": "accuracy", "value": 0.5, "is_primary": True}
ABSENT = {  # version -> table -> columns that it did not have
    1: {"predictions": ["prompt", "demonstrations_wanted", "cut_short", "cluster"]},
    2: {
        "predictions": ["demonstrations_wanted", "cut_short", "cluster"],
        "metrics": [
            "demonstrations",
            "demonstrations_wanted",
            "cut_short",
            "examples_hash",
            "demonstrations_hash",
            "against",
        ],
    },
    3: {"predictions": ["cluster"], "metrics": ["against"], "runs": ["held_out_fold"]},
    4: {"predictions": ["cluster"], "runs": ["held_out_fold"]},
}


REQUIRED = {"predictions": ["gold", "score"]}  # before version 5


def _write_old(results: Path, version: int, name: str, table: str = "predictions") -> None:
    """A file as that version wrote it."""
    row = {**(PREDICTION if table == "predictions" else METRIC), "run": name}
    if version > 1 and table == "predictions":
        row["prompt"] = f"prompt of {name}"
    content = to_table(table, [row]).drop_columns(ABSENT[version][table])
    fields = [
        field.with_nullable(field.nullable and field.name not in REQUIRED.get(table, ())) for field in content.schema
    ]
    content = content.cast(pa.schema(fields))
    path = results / table / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content.replace_schema_metadata({f"{VERSION_KEY}{version}": table}), path)


def _prompts(results: Path) -> list[tuple[str, str | None, bool | None]]:
    rows = Catalogue([results]).rows("SELECT run, prompt, cut_short FROM predictions ORDER BY run")
    return [(row["run"], row["prompt"], row["cut_short"]) for row in rows]


def test_what_an_older_version_lacks_is_null(tmp_path: Path) -> None:
    _write_old(tmp_path, 1, "a")
    assert _prompts(tmp_path) == [("a", None, None)]
    _write_old(tmp_path, 2, "b")
    write_rows(tmp_path, "predictions", [{**PREDICTION, "run": "c", "prompt": "p", "cut_short": True}], "c")
    assert _prompts(tmp_path) == [("a", None, None), ("b", "prompt of b", None), ("c", "p", True)]


def test_tables_come_from_old_and_new_metrics_alike(tmp_path: Path) -> None:
    _write_old(tmp_path, 2, "old", "metrics")
    write_rows(tmp_path, "metrics", [{**METRIC, "model": "y", "run": "new", "cut_short": 0.25}], "new")
    cells = Catalogue([tmp_path]).rows("SELECT model, value, cut_short FROM cells ORDER BY model")
    assert cells == [
        {"model": "x", "value": 0.5, "cut_short": None},
        {"model": "y", "value": 0.5, "cut_short": 0.25},
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_rows_are_read_back_with_todays_columns(tmp_path: Path, version: int) -> None:
    _write_old(tmp_path, version, "old")
    rows = read_rows(tmp_path, "predictions", "old")
    assert rows is not None
    assert list(rows[0]) == SCHEMAS["predictions"].names
    assert rows[0]["cut_short"] is None
    assert dict(rows[0]["statistics"]) == {"correct": 1.0}
    assert read_rows(tmp_path, "predictions", "other") is None


def test_the_copy_of_many_files_is_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ENOUGH", 4)
    for number in range(4):
        _write_old(tmp_path, 1 + number % 2, f"r{number}")
    for number in range(4, 8):
        row = {**PREDICTION, "run": f"r{number}", "prompt": "p", "cut_short": False}
        write_rows(tmp_path, "predictions", [row], f"r{number}")
    expected = [(f"r{n}", f"prompt of r{n}" if n % 2 else None, None) for n in range(4)]
    expected += [(f"r{n}", "p", False) for n in range(4, 8)]
    for _ in range(2):
        assert _prompts(tmp_path) == expected
    (copy,) = (tmp_path / ".cache").glob("predictions-*.parquet")
    assert pq.read_schema(copy).names == [*SCHEMAS["predictions"].names, "source"]


@pytest.mark.parametrize("version", ABSENT)
def test_the_same_rows_again_are_fine_beside_a_file_of_an_older_version(tmp_path: Path, version: int) -> None:
    row = {**PREDICTION, "run": "old", **({"prompt": "prompt of old"} if version > 1 else {})}
    _write_old(tmp_path, version, "old")
    write_rows(tmp_path, "predictions", [row], "old")
    with pytest.raises(StoreError, match="exists with different rows"):
        write_rows(tmp_path, "predictions", [{**row, "score": 0.5}], "old")


def test_every_column_that_a_version_added_may_be_null() -> None:
    """What versions since the first have added is nullable: files without it are read all the same."""
    assert max(ABSENT) == SCHEMA_VERSION - 1, "say which columns the version before did not have"
    for tables in ABSENT.values():
        for table, columns in tables.items():
            assert all(SCHEMAS[table].field(column).nullable for column in columns)
