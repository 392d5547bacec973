"""Result rows: schema-checked, whole or not at all, never rewritten."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from logitbank.errors import StoreError
from logitbank.storage.results.rows import SCHEMAS, write_rows

LOG_ROW = {"run": "r", "model": "m", "step": 10, "task": "all", "metric": "ce", "value": 1.5}


def test_rows_come_back_with_the_schema_and_missing_optionals_as_null(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "training_log", [LOG_ROW], "r-10")
    assert path == tmp_path / "training_log" / "r-10.parquet"
    file = pq.ParquetFile(path)
    assert file.schema_arrow.remove_metadata().equals(SCHEMAS["training_log"])
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read().to_pylist() == [{**LOG_ROW, "condition": None, "view": None, "seed": None}]


def test_timestamps_and_statistics_keep_their_types(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    path = write_rows(tmp_path, "runs", [{"run": "r", "kind": "training", "model": "m", "created_at": now}], "r")
    assert pq.read_table(path)["created_at"].to_pylist() == [now]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**LOG_ROW, "valeu": 1.0}], "unknown column 'valeu'; did you mean value"),
        ([{**LOG_ROW, "step": "ten"}], "training_log.step: expected int64"),
        (
            [LOG_ROW, {k: v for k, v in LOG_ROW.items() if k != "model"}],
            "training_log.model: required.*row 1",
        ),
        ([], "at least one row"),
    ],
)
def test_a_wrong_row_is_refused_and_leaves_nothing(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write_rows(tmp_path, "training_log", rows, "x")
    assert not list(tmp_path.rglob("*.p*"))


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b"])
def test_a_name_that_could_escape_or_hide_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="name: expected"):
        write_rows(tmp_path, "training_log", [LOG_ROW], name)


def test_unknown_table(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected one of predictions, metrics, runs, training_log"):
        write_rows(tmp_path, "logs", [LOG_ROW], "x")


def test_the_same_rows_again_are_fine_and_other_rows_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "training_log", [LOG_ROW], "x")
    before = path.read_bytes()
    assert write_rows(tmp_path, "training_log", [LOG_ROW], "x") == path
    with pytest.raises(StoreError, match="never rewritten"):
        write_rows(tmp_path, "training_log", [{**LOG_ROW, "value": 2.0}], "x")
    assert path.read_bytes() == before


def test_a_torn_file_of_that_name_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "training_log", [LOG_ROW], "x")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="torn; delete it"):
        write_rows(tmp_path, "training_log", [LOG_ROW], "x")


WRITER = """
import sys
from logitbank.storage.results.rows import write_rows
directory, writer = sys.argv[1], int(sys.argv[2])
row = {"run": "r", "model": "m", "step": 10, "task": "all", "metric": "ce", "value": 1.5}
for part in range(5):
    write_rows(directory, "training_log", [{**row, "step": writer}] * 3, f"w{writer}-{part}")
write_rows(directory, "training_log", [row], "shared")
"""


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(i)]) for i in range(4)]
    assert [writer.wait(timeout=300) for writer in writers] == [0] * 4
    files = list((tmp_path / "training_log").iterdir())
    assert len(files) == 4 * 5 + 1, "temporary files are left or files are missing"
    assert sum(pq.read_metadata(file).num_rows for file in files) == 4 * 5 * 3 + 1
