"""Rows of CSV: exact text from cells of any kind, and each fault with its row."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitbank.tasks import TaskError
from logitbank.tasks.files import Row, open_rows

ROWS = [
    {"id": "1", "prompt": "two\nlines, a comma", "answer": 'She said "yes".'},
    {"id": "2", "prompt": "NA", "answer": "None"},  # words that readers of tables take for nothing
    {"id": "3", "prompt": "Zürich 🙂", "answer": "x" * 200_000},  # beyond the limit of `csv`
]


def written(rows: list[dict[str, str]], *, newline: str = "\n") -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), lineterminator=newline)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def rows_of(path: Path) -> list[Row]:
    return list(open_rows("preference.train", str(path), split="train"))


KINDS: dict[str, bytes] = {
    "rows.csv": written(ROWS).encode(),
    "windows.csv": b"\xef\xbb\xbf" + written(ROWS, newline="\r\n").encode(),
    "blank-lines.csv": b"\n" + written(ROWS).encode() + b"\n\n",
    "rows.csv.gz": gzip.compress(written(ROWS).encode()),
    "rows.csv.zst": bytes(pa.compress(written(ROWS).encode(), codec="zstd")),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_gives_the_same_text_exactly(kind: str, tmp_path: Path) -> None:
    (tmp_path / kind).write_bytes(KINDS[kind])
    found = rows_of(tmp_path / kind)
    assert [row.values for row in found] == ROWS
    assert found[2].place == f"{tmp_path / kind}, row 3"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=5))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    path.write_text(written(rows), encoding="utf-8", newline="")
    expected = [{name: cell for name, cell in row.items() if cell} for row in rows]  # an empty cell holds nothing
    assert [row.values for row in rows_of(path)] == expected


GOOD = "id,text\n" + "".join(f'{number},"two\nlines"\n' for number in range(16))
BROKEN: dict[str, tuple[bytes, str]] = {
    "too many cells": (
        f"{GOOD}17,a,b\n".encode(),
        "row 17: expected 2 cells like the header, got 3; put quotes around cells",
    ),
    "too few cells": (
        f"{GOOD}17\n".encode(),
        "row 17: expected 2 cells like the header, got 1; put quotes around cells",
    ),
    "open quote": (f'{GOOD}17,"a\n'.encode(), "row 17: unexpected end of data"),
    "text behind a quote": (f'{GOOD}17,"a"b\n'.encode(), "row 17: ',' expected after '\"'"),
    "other bytes": (GOOD.encode() + "17,ü\n".encode("latin-1"), "row 17: expected UTF-8 text, got other bytes"),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_file_is_one_line_that_names_the_row(fault: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content, says = BROKEN[fault]
    Path("x.csv").write_bytes(content)
    with pytest.raises(TaskError) as caught:
        rows_of(Path("x.csv"))
    assert str(caught.value).startswith(f"preference.train: x.csv, {says}")
    assert "\n" not in str(caught.value)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("id,text,id\n1,a,2\n")
    with pytest.raises(TaskError, match=r"^preference.train: x.csv: expected each column once, got 'id' twice$"):
        rows_of(Path("x.csv"))
    Path("x.csv").write_text("id,text\n")
    with pytest.raises(TaskError, match=r"^preference.train: x.csv has no rows$"):
        rows_of(Path("x.csv"))
