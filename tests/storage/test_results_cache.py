"""Many small files are read through one copy; the copy never shows anything the files do not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from logitbank.errors import StoreError
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
    assert Catalogue([tmp_path]).rows("SELECT count(DISTINCT run) AS n FROM training_log") == [{"n": 13}]


def _blank(files: Sequence[Path]) -> None:
    """Same size, same time, no content: only a copy can answer."""
    for file in files:
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_copy_is_what_is_read(tmp_path: Path) -> None:
    files = [_write(tmp_path, number) for number in range(6)]
    _steps(tmp_path)
    _blank(files)
    assert _steps(tmp_path) == list(range(6))


def test_a_further_copy_reads_new_files_alone(tmp_path: Path) -> None:
    made = []
    for first in range(0, 60, 6):
        new = [_write(tmp_path, number) for number in range(first, first + 6)]
        assert _steps(tmp_path) == list(range(first + 6))
        _blank(new)
        made.append(len(_named(tmp_path)))
    assert max(made) <= 3, "copies are merged: no more than the logarithm of the files"


def _named(results: Path) -> list[str]:
    """The copies that count."""
    index = json.loads((results / ".cache" / "training_log.json").read_text())
    return [entry["copy"] for entry in index["copies"]]


def test_one_file_that_changes_costs_no_other(tmp_path: Path) -> None:
    files = [_write(tmp_path, number) for number in range(12)]
    _steps(tmp_path)
    before = _named(tmp_path)
    _blank(files[2:])
    files[0].unlink()
    files[1].unlink()
    _write(tmp_path, 1, value=0.75)
    assert _steps(tmp_path) == list(range(1, 12))
    assert Catalogue([tmp_path]).rows("SELECT value FROM training_log WHERE step = 1") == [{"value": 0.75}]
    assert _named(tmp_path) == before
    for number in range(12, 30):  # merged with more, the rows of those two stay out
        _write(tmp_path, number)
    assert _steps(tmp_path) == list(range(1, 30))
    assert len(_named(tmp_path)) == 1
    (tmp_path / "training_log" / "r020.parquet").unlink()  # and sources count on as before
    assert _steps(tmp_path) == [*range(1, 20), *range(21, 30)]


def test_a_copy_of_files_that_are_gone_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "MOST_GONE", 2)
    files = [_write(tmp_path, number) for number in range(12)]
    _steps(tmp_path)
    before = _named(tmp_path)
    for file in files[:3]:
        file.unlink()
    assert _steps(tmp_path) == list(range(3, 12))
    assert not set(before) & set(_named(tmp_path))


def test_a_query_copies_what_it_names_and_no_more(tmp_path: Path) -> None:
    for number in range(6):
        _write(tmp_path, number)
    catalogue = Catalogue([tmp_path])
    assert catalogue.rows("SELECT count(*) AS n FROM runs") == [{"n": 0}]
    assert _copies(tmp_path) == []
    assert catalogue.rows("SELECT count(*) AS n FROM training_ends") == [{"n": 6}]
    assert len(_copies(tmp_path)) == 1


def test_a_table_that_is_not_named_is_an_error_and_not_empty(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    sql = "SELECT * FROM query_table('training_' || 'log')"
    with pytest.raises(StoreError, match="training_log is not read yet: name it in the query"):
        Catalogue([tmp_path]).query(sql)
    catalogue = Catalogue([tmp_path])
    catalogue.read()
    assert catalogue.query(sql).num_rows == 1


def test_the_cache_may_go_while_it_is_read(tmp_path: Path) -> None:
    files = [_write(tmp_path, number) for number in range(6)]
    catalogue = Catalogue([tmp_path])
    for _ in range(2):
        assert catalogue.rows("SELECT step FROM training_log ORDER BY step")[-1] == {"step": 5}
        shutil.rmtree(tmp_path / ".cache", ignore_errors=True)
    files[5].unlink()  # withdrawn by its writer
    assert catalogue.rows("SELECT step FROM training_log ORDER BY step")[-1] == {"step": 4}


def test_readers_that_copy_at_once_agree(tmp_path: Path) -> None:
    for number in range(20):
        _write(tmp_path, number)
    for _ in range(3):
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(_steps, [tmp_path] * 4)) == [list(range(20))] * 4
        shutil.rmtree(tmp_path / ".cache")


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
        assert catalogue.rows("SELECT count(*) AS n FROM training_log") == [{"n": 6}]
        assert catalogue.torn == [torn]


@pytest.mark.parametrize("damage", ["index", "copy", "gone", "version"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    for number in range(6):
        _write(tmp_path, number)
    _steps(tmp_path)
    (copy,) = _copies(tmp_path)
    if damage == "index":
        (tmp_path / ".cache" / "training_log.json").write_text("{")
    elif damage == "copy":
        copy.write_bytes(copy.read_bytes()[:-20])
    elif damage == "version":
        index = tmp_path / ".cache" / "training_log.json"
        index.write_text(index.read_text().replace(result_cache.FORMAT, "another"))
        copy.write_bytes(bytes(copy.stat().st_size))
    else:
        copy.unlink()
    assert _steps(tmp_path) == list(range(6))


def test_a_directory_that_cannot_be_written_is_still_read(tmp_path: Path) -> None:
    for number in range(6):
        _write(tmp_path, number)
    (tmp_path / ".cache").write_text("a file where the directory would be")
    assert _steps(tmp_path) == list(range(6))
