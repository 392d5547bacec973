"""Answers that are kept for the next process are those of the files that are there, and of no others."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from pathlib import Path

import pytest

from logitbank.errors import StoreError
from logitbank.storage.results import remembered
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import write_rows
from tests.storage import stores

SQL = "SELECT step, value FROM training_log ORDER BY step"


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "ENOUGH", 4)


def write(results: Path, number: int, value: float = 0.5) -> Path:
    row = {"run": f"r{number}", "model": "m", "step": number, "task": "all", "metric": "ce", "value": value}
    return write_rows(results, "training_log", [row], f"r{number:03d}")


def answer(*results: Path, sql: str = SQL) -> list[tuple[object, ...]]:
    """What a process says that has asked nothing yet."""
    return [tuple(row.values()) for row in Catalogue(results).rows(sql)]


def kept(results: Path) -> list[Path]:
    return sorted((results / ".cache" / "answers").glob("*"))


def blank(results: Path) -> None:
    """Same names, sizes and times of all files, no content: only what was kept can answer."""
    for file in (results / "training_log").iterdir():
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Six files that have been asked about."""
    for number in range(6):
        write(tmp_path, number)
    assert answer(tmp_path) == [(number, 0.5) for number in range(6)]
    return tmp_path


def test_another_process_is_answered_without_reading_a_file(results: Path) -> None:
    (one,) = kept(results)
    blank(results)
    assert answer(results) == [(number, 0.5) for number in range(6)]
    assert kept(results) == [one]
    assert answer(results, sql="SELECT count(*) FROM training_log") == [(0,)], "another question is another answer"


def test_few_files_are_asked_themselves(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, number)
    answer(tmp_path)
    assert kept(tmp_path) == []


def test_any_change_of_any_file_is_seen(results: Path) -> None:
    write(results, 6)
    assert answer(results)[-1] == (6, 0.5)
    (results / "training_log" / "r006.parquet").unlink()
    assert answer(results)[-1] == (5, 0.5)
    (results / "training_log" / "r005.parquet").unlink()
    path = write(results, 5, value=0.25)
    assert answer(results)[-1] == (5, 0.25)
    before = path.stat()
    path.write_bytes(write(results / "other", 5, value=0.75).read_bytes())  # in place, of the same size
    assert path.stat().st_size == before.st_size
    assert answer(results)[-1] == (5, 0.75)
    path.rename(path.with_name("another.parquet"))
    assert answer(results)[-1] == (5, 0.75)


def test_tables_that_a_query_does_not_name_change_nothing(results: Path) -> None:
    created = datetime.datetime.now(datetime.UTC)
    write_rows(results, "runs", [{"run": "r", "kind": "training", "model": "m", "created_at": created}], "r")
    blank(results)
    assert answer(results)[-1] == (5, 0.5)
    assert answer(results, sql="SELECT run FROM training_ends JOIN runs USING (run)") == []


def test_a_view_is_known_by_what_it_is_made_of(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from logitbank.storage.results.views import VIEWS

    sql = "SELECT value FROM training_ends ORDER BY step"
    assert answer(results, sql=sql) == [(0.5,)] * 6
    monkeypatch.setitem(VIEWS, "training_ends", "SELECT *, 1.0 AS more FROM training_log WHERE step > 3")
    assert answer(results, sql=sql) == [(0.5,)] * 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_answer_is_made_again(results: Path, damage: str) -> None:
    (one,) = kept(results)
    content = bytearray(one.read_bytes())
    if damage == "flipped":
        content[-20] ^= 1
    one.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-8]), "empty": b""}[damage])
    write(results, 5, value=0.5)
    assert answer(results) == [(number, 0.5) for number in range(6)]


def test_a_torn_file_is_reported_by_each_process(results: Path) -> None:
    torn = results / "training_log" / "torn.parquet"
    torn.write_bytes(b"PAR1")
    for _ in range(2):
        catalogue = Catalogue([results])
        assert len(catalogue.rows(SQL)) == 6
        assert catalogue.torn == [torn]


def test_a_file_that_goes_while_it_is_read_is_missing_in_no_later_answer(results: Path) -> None:
    shutil.rmtree(results / ".cache")
    catalogue = Catalogue([results])
    assert catalogue.rows("SELECT count(*) AS n FROM training_log") == [{"n": 6}]
    aside = results / "aside"
    file = results / "training_log" / "r005.parquet"
    file.rename(aside)
    assert len(catalogue.rows(SQL)) == 5
    aside.rename(file)
    assert len(answer(results)) == 6


def test_several_directories_are_one_question(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write(other, 9)
    assert answer(results, other)[-1] == (9, 0.5)
    assert len(answer(results)) == 6
    shutil.rmtree(other / "training_log")
    assert len(answer(results, other)) == 6


def test_what_a_store_has_a_part_in_is_asked_each_time(results: Path) -> None:
    url = str(results / "store")
    stores.build(url, stores.records(4))
    sql = "SELECT count(*) AS n FROM cache_examples, training_log"
    assert Catalogue([results], [url]).rows(sql) == [{"n": 8 * 6}]
    assert Catalogue([results]).rows(sql) == [{"n": 0}]
    assert Catalogue([results], [url]).rows(sql) == [{"n": 8 * 6}]


def test_errors_are_not_kept(results: Path) -> None:
    for _ in range(2):
        with pytest.raises(StoreError, match="nothing"):
            answer(results, sql="SELECT nothing FROM training_log")
    assert len(kept(results)) == 1


def test_a_directory_that_cannot_be_written_is_still_read(results: Path) -> None:
    shutil.rmtree(results / ".cache")
    (results / ".cache").write_text("a file where the directory would be")
    assert len(answer(results)) == 6


def test_answers_that_nobody_asks_for_are_removed_and_large_ones_not_kept(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = "SELECT count(*) FROM training_log"
    answer(results, sql=counts)
    old = time.time() - remembered.KEEP_SECONDS - 60
    for path in kept(results):
        os.utime(path, (old, old))
    answer(results)  # asked for again
    answer(results, sql="SELECT max(step) FROM training_log")
    blank(results)
    assert answer(results)[-1] == (5, 0.5)
    assert answer(results, sql=counts) == [(0,)]
    monkeypatch.setattr(remembered, "MOST_BYTES", 10)
    before = kept(results)
    answer(results, sql="SELECT min(step) FROM training_log")
    assert kept(results) == before
