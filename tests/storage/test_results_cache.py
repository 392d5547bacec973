"""Many small files are read through one copy; the copy never shows anything the files do not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from logitbank.storage.results import compaction as result_cache
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import write_rows


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "ENOUGH", 4)


def _write(results: Path, number: int, value: float = 0.5) -> Path:
    row = {"run": f"r{number}", "model": "m", "step": number, "task": "all", "metric": "ce", "value": value}
    return write_rows(results, "training_log", [row], f"r{number:03d}")


def _steps(results: Path) -> list[Any]:
    return [row["step"] for row in Catalogue([results]).rows("SELECT step FROM training_log ORDER BY step")]


def _copies(results: Path) -> list[Path]:
    return sorted((results / ".cache").glob("training_log-*.parquet")) if (results / ".cache").exists() else []


def test_few_files_are_not_copied(tmp_path: Path) -> None:
    for number in range(4):
        _write(tmp_path, number)
    assert _steps(tmp_path) == [0, 1, 2, 3]
    assert _copies(tmp_path) == []


def test_many_files_are_copied_once_and_new_ones_are_added(tmp_path: Path) -> None:
    for number in range(6):
        _write(tmp_path, number)
    for _ in range(2):
        assert _steps(tmp_path) == list(range(6))
        assert len(_copies(tmp_path)) == 1
    _write(tmp_path, 6)
    assert _steps(tmp_path) == list(range(7))
    assert len(_copies(tmp_path)) == 1, "one new file is read by itself"
    for number in range(7, 13):
        _write(tmp_path, number)
    assert _steps(tmp_path) == list(range(13))
    assert Catalogue([tmp_path]).files["training_log"] == 13


def test_the_copy_is_what_is_read(tmp_path: Path) -> None:
    files = [_write(tmp_path, number) for number in range(6)]
    _steps(tmp_path)
    for file in files:  # same size, same time, no content: only the copy can answer
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert _steps(tmp_path) == list(range(6))


def test_removed_and_rewritten_files_void_the_copy(tmp_path: Path) -> None:
    files = [_write(tmp_path, number) for number in range(6)]
    _steps(tmp_path)
    files[0].unlink()
    assert _steps(tmp_path) == [1, 2, 3, 4, 5]
    files[1].unlink()
    _write(tmp_path, 1, value=0.75)
    rows = Catalogue([tmp_path]).rows("SELECT value FROM training_log WHERE step = 1")
    assert rows == [{"value": 0.75}]


def test_torn_files_stay_out_of_the_copy_and_in_the_report(tmp_path: Path) -> None:
    for number in range(6):
        _write(tmp_path, number)
    torn = tmp_path / "training_log" / "torn.parquet"
    torn.write_bytes(b"PAR1")
    for _ in range(2):
        catalogue = Catalogue([tmp_path])
        assert catalogue.torn == [torn]
        assert catalogue.rows("SELECT count(*) AS n FROM training_log") == [{"n": 6}]


@pytest.mark.parametrize("damage", ["index", "copy", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    for number in range(6):
        _write(tmp_path, number)
    _steps(tmp_path)
    (copy,) = _copies(tmp_path)
    if damage == "index":
        (tmp_path / ".cache" / "training_log.json").write_text("{")
    elif damage == "copy":
        copy.write_bytes(copy.read_bytes()[:-20])
    else:
        copy.unlink()
    assert _steps(tmp_path) == list(range(6))


def test_a_directory_that_cannot_be_written_is_still_read(tmp_path: Path) -> None:
    for number in range(6):
        _write(tmp_path, number)
    (tmp_path / ".cache").write_text("a file where the directory would be")
    assert _steps(tmp_path) == list(range(6))
