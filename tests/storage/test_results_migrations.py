"""Files of an older schema version are read in today's columns, alone, among new ones and through the copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from logitbank.storage.results import compaction as result_cache
from logitbank.storage.results import migrations
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS, VERSION_KEY, to_table, write_rows

ROW: dict[str, Any] = {
    **dict.fromkeys(("run", "model", "condition", "task", "language", "split", "method", "example_id"), "x"),
    **dict.fromkeys(("prompt_hash", "question", "output", "gold"), "x"),
    "demonstrations": 0,
    "score": 1.0,
    "statistics": {"correct": 1.0},
}


def _write_version_1(results: Path, name: str) -> None:
    """A file as version 1 wrote it: no column `prompt`."""
    table = to_table("predictions", [{**ROW, "run": name}]).drop_columns(["prompt"])
    path = results / "predictions" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata({f"{VERSION_KEY}1": "predictions"}), path)


def _read(results: Path) -> list[tuple[str, str | None]]:
    rows = Catalogue([results]).rows("SELECT run, prompt FROM predictions ORDER BY run")
    return [(row["run"], row["prompt"]) for row in rows]


def test_version_1_lacks_prompts(tmp_path: Path) -> None:
    _write_version_1(tmp_path, "old")
    assert _read(tmp_path) == [("old", None)]
    write_rows(tmp_path, "predictions", [{**ROW, "run": "young", "prompt": "p"}], "young")
    assert _read(tmp_path) == [("old", None), ("young", "p")]


def test_the_copy_of_many_files_is_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "ENOUGH", 4)
    for number in range(4):
        _write_version_1(tmp_path, f"r{number}")
    for number in range(4, 8):
        write_rows(tmp_path, "predictions", [{**ROW, "run": f"r{number}", "prompt": "p"}], f"r{number}")
    for _ in range(2):
        assert _read(tmp_path) == [(f"r{n}", "p" if n >= 4 else None) for n in range(8)]
    (copy,) = (tmp_path / ".cache").glob("predictions-*.parquet")
    assert pq.read_schema(copy).names == SCHEMAS["predictions"].names


def test_steps_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version that renames a column of this one, reached over two steps."""
    later = {**SCHEMAS, "predictions": SCHEMAS["predictions"].append(pq.read_schema(_any_file(tmp_path)).field("run"))}
    schema = later["predictions"]
    later["predictions"] = schema.set(len(schema) - 1, schema.field(len(schema) - 1).with_name("label"))
    monkeypatch.setattr(migrations, "SCHEMAS", later)
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setitem(migrations.STEPS, SCHEMA_VERSION, {"predictions": {"label": "coalesce(prompt, run || '!')"}})
    _write_version_1(tmp_path, "old")
    answer = Catalogue([tmp_path]).rows("SELECT label FROM predictions ORDER BY label")
    assert [row["label"] for row in answer] == ["any!", "old!"]


def test_every_step_is_there() -> None:
    assert sorted(migrations.STEPS) == list(range(1, SCHEMA_VERSION))


def _any_file(results: Path) -> Path:
    return write_rows(results, "predictions", [{**ROW, "run": "any"}], "any")
