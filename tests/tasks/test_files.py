"""Rows of files: every kind and compression alike, exact, streamed, and each fault with its place."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitbank.tasks import TaskError
from logitbank.tasks.files import Row, open_rows

ROWS: list[dict[str, Any]] = [
    {"id": "a", "call": {"arguments": {"city": "Zürich", "seats": 2}}},
    {"id": "b", "call": {"arguments": {"date": None, "list": [1, None]}}, "note": "only here"},
    {"id": "c", "call": {"arguments": {"seats": "two", "city": 7.5}}},
]


def rows_of(name: object, **options: Any) -> list[Row]:
    return list(open_rows("chat.train", str(name), split="train", **options))


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd"))


KINDS: dict[str, bytes] = {
    "rows.jsonl": lines(ROWS),
    "no-last-newline.jsonl": lines(ROWS).rstrip(),
    "blank-lines.jsonl": lines(ROWS).replace(b"\n", b"\n\n"),
    "windows.jsonl": b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n"),
    "array.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "pretty.json": b"\xef\xbb\xbf\n " + json.dumps(ROWS, indent=2).encode() + b"\n",
    "rows.jsonl.gz": gzip.compress(lines(ROWS)),
    "parts.jsonl.gz": gzip.compress(lines(ROWS[:1])) + gzip.compress(lines(ROWS[1:])),
    "rows.jsonl.zst": zstd(lines(ROWS)),
    "misnamed.txt": zstd(json.dumps(ROWS).encode()),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_gives_the_same_values_exactly(kind: str, tmp_path: Path) -> None:
    (tmp_path / kind).write_bytes(KINDS[kind])
    assert [row.values for row in rows_of(tmp_path / kind)] == ROWS


def test_parquet_leaves_out_what_other_rows_brought(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROWS[0], {"id": "b", "call": {"arguments": {"seats": 3}}}]), tmp_path / "x")
    found = rows_of(tmp_path / "x")
    assert [row.values for row in found] == [ROWS[0], {"id": "b", "call": {"arguments": {"seats": 3}}}]
    assert found[1].place == f"{tmp_path / 'x'}, row 2"


def test_parquet_that_datasets_wrote_gives_back_every_value(tmp_path: Path) -> None:
    """It writes what differs between rows as JSON: decoded as such, a null in it is the writer's own."""
    rows = [
        {"id": "a", "tools": [{"name": "x", "of": {"day": {"is": None}}}]},
        {"id": "b", "tools": [{"name": "y", "of": {"n": [1]}}]},
    ]
    written = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert any("Json" in str(feature) for feature in written.features.values())
    written.to_parquet(str(tmp_path / "x.parquet"))
    assert [row.values for row in rows_of(tmp_path / "x.parquet")] == rows


def test_a_line_is_counted_as_an_editor_counts_it(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\n" + lines(ROWS[:1]) + b"\n\n" + lines(ROWS[1:]))
    assert [(row.number, row.unit) for row in rows_of(tmp_path / "x.jsonl")] == [(2, "line"), (5, "line"), (6, "line")]


def test_a_glob_is_read_in_order_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (2, 10, 1):
        Path(f"part-{number:02}.jsonl").write_bytes(lines([{"id": number}]))
    found = rows_of("part-*.jsonl")
    assert [row.values["id"] for row in found] == [1, 2, 10]
    assert found[2].place == "part-10.jsonl, line 1"
    assert [row.values["id"] for row in rows_of(tmp_path / "part-0?.jsonl")] == [1, 2]


def test_a_url_of_any_file_system_is_read() -> None:
    for name, content in (("a.jsonl", lines(ROWS)), ("b.jsonl.gz", gzip.compress(lines(ROWS)))):
        fsspec.filesystem("memory").pipe_file(f"/bucket/{name}", content)
    assert [row.values for row in rows_of("memory://bucket/a.jsonl")] == ROWS
    assert [row.values for row in rows_of("memory://bucket/*.jsonl*")] == ROWS * 2
    with pytest.raises(TaskError, match=r"^chat.train: no file memory://bucket/c.jsonl$"):
        rows_of("memory://bucket/c.jsonl")


def test_a_web_address_is_read_and_its_query_is_no_glob(tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert [row.values for row in rows_of(f"{address}/rows.jsonl?download=1")] == ROWS
        with pytest.raises(TaskError, match=rf"^chat.train: no file {address}/missing.jsonl$"):
            rows_of(f"{address}/missing.jsonl")
        server.shutdown()
    with pytest.raises(TaskError, match=rf"^chat.train: {address}/rows.jsonl cannot be read: Cannot connect") as caught:
        rows_of(f"{address}/rows.jsonl")
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(tmp_path: Path) -> str:
    """Clones of `org/talks`, JSON lines in two splits of the configuration `short`, and of `org/table`, a CSV file."""
    folder = tmp_path / "hub" / "org" / "talks"
    (folder / "short").mkdir(parents=True)
    (tmp_path / "hub" / "org" / "table").mkdir()
    (tmp_path / "hub" / "org" / "table" / "train.csv").write_text("id,prompt\n1,hello\n2,\n", encoding="utf-8")
    (folder / "short" / "train.jsonl").write_bytes(lines(ROWS))
    (folder / "short" / "dev.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[:1])))
    files = [{"split": "train", "path": "short/train.jsonl"}, {"split": "dev", "path": "short/dev.jsonl.gz"}]
    card = [{"config_name": "short", "default": True, "data_files": files}]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(card)}\n---\n", encoding="utf-8")
    return str(tmp_path / "hub")


def test_a_hub_id_names_configuration_and_split(hub: str) -> None:
    for name in ("org/talks", "org/talks:short", "org/talks:short/train"):
        found = rows_of(name, mirror=hub)
        assert [row.values for row in found] == ROWS, name  # no key of another row, no number become a text
        assert found[1].place == "org/talks: train.jsonl, line 2"
    assert [row.values for row in rows_of("org/talks:short/dev", mirror=hub)] == ROWS[:1]
    assert [row.values for row in rows_of("org/table", mirror=hub)] == [{"id": "1", "prompt": "hello"}, {"id": "2"}]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "org/talks:short/test",
            r"configuration short, split test: expected one of its splits \(train, dev\), got 'test'",
        ),
        ("org/talks:tall", "cannot be opened: BuilderConfig 'tall' not found"),
        ("org/walks", "data.mirror: no directory .*/org/walks; expected a local clone"),
    ],
)
def test_a_hub_id_that_is_not_there_is_one_line(hub: str, name: str, says: str) -> None:
    with pytest.raises(
        TaskError, match=rf"^chat.train: no such file, and not readable as a hub id: .*{says}"
    ) as caught:
        rows_of(name, mirror=hub)
    assert "\n" not in str(caught.value)


def test_a_path_that_exists_comes_before_a_hub_id(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    Path("org/talks").write_bytes(lines([{"id": "file"}]))
    assert [row.values for row in rows_of("org/talks", mirror=hub)] == [{"id": "file"}]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.jsonl", "no file missing.jsonl, nor a hub id (org/name, org/name:config/split)"),
        ("data/missing.jsonl", "no file data/missing.jsonl, nor a hub id (org/name, org/name:config/split)"),
        ("./data/missing", "no file ./data/missing, nor a hub id (org/name, org/name:config/split)"),
        ("missing-*.jsonl", "no file matches 'missing-*.jsonl', nor a hub id (org/name, org/name:config/split)"),
        ("folder", "folder is a directory; give its files instead, such as folder/*.jsonl"),
        ("nowhere://x", "nowhere://x cannot be read: Protocol not known: nowhere"),
    ],
)
def test_what_is_not_there_is_one_line(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(TaskError) as caught:
        rows_of(name)
    assert str(caught.value) == f"chat.train: {says}"


GOOD = lines([{"id": number} for number in range(16)])
ARRAY = json.dumps([{"id": number} for number in range(16)]).encode()
BROKEN: dict[str, tuple[bytes, str]] = {
    "invalid JSON": (GOOD + b'{"id": 16,}\n' + GOOD, r"x, line 17: not valid JSON: .* at column 1\d"),
    "open array": (GOOD + b'{"messages": [\n', r"x, line 17: not valid JSON: Expecting value at column 15"),
    "cut line": (GOOD + b'{"id": "sixt', "x, line 17: not valid JSON: Unterminated string starting at"),
    "no object": (GOOD + b"[1]\n", "x, line 17: expected a JSON object, got list"),
    "other bytes": (GOOD + '{"id": "ü"}\n'.encode("latin-1"), "x, line 17: expected UTF-8 text, got other bytes"),
    "pretty object": (b'{\n  "data": []\n}\n', "x, line 1: not valid JSON: .*; expected one JSON object a line"),
    "csv": (b"prompt,completion\na,b\n", "x, line 1: not valid JSON"),
    "invalid element": (ARRAY[:-1] + b', {"id": nonsense}]', "x, row 17: not valid JSON: Expecting value"),
    "element no object": (ARRAY[:-1] + b", 5]", "x, row 17: expected a JSON object, got int"),
    "array without comma": (ARRAY[:-1] + b' {"id": 3}]', "x, row 16: not valid JSON: expected ',', got {"),
    "cut array": (ARRAY[:-1], "x, row 16: not valid JSON: expected ',', got the end of the file"),
    "behind the array": (ARRAY + b"{}", "x, row 16: not valid JSON: expected the end of the file"),
    "other bytes in array": (b'[{"id": "' + "ü".encode("latin-1") + b'"}]', "x, row 0: expected UTF-8 text"),
    "cut gzip": (gzip.compress(GOOD * 999)[:-20], "x cannot be read: .*[Tt]runcated"),
    "cut zstd": (zstd(GOOD * 999)[:-20], "x cannot be read: .*[Tt]runcated"),
    "cut Parquet": (b"PAR1 and no more", "x cannot be read"),
    "empty": (b"", "x has no rows"),
    "blank": (b" \n\n", "x has no rows"),
    "empty array": (b"[ ]", "x has no rows"),
    "empty gzip": (gzip.compress(b""), "x has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_file_is_one_line_that_names_the_place(fault: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content, says = BROKEN[fault]
    Path("x").write_bytes(content)
    with pytest.raises(TaskError, match=rf"^chat.train: {says}") as caught:
        rows_of("x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1, 3, 17, 64])
def test_an_array_is_the_same_through_a_window_of_any_size(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitbank.tasks.files._CHUNK", size)
    odd = [*ROWS, {"text": 'a ] } , " \\ \n\u2028', "emoji": "🙂" * 9, "number": -1.5e300, "deep": [[{"x": [True]}]]}]
    for text in (json.dumps(odd), json.dumps(odd, indent=3, ensure_ascii=False)):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert [row.values for row in rows_of(tmp_path / "x.json")] == odd
    (tmp_path / "x.json").write_text(json.dumps(odd)[:-9], encoding="utf-8")
    with pytest.raises(TaskError, match="row 4: not valid JSON"):
        rows_of(tmp_path / "x.json")


@pytest.mark.parametrize("kind", ["jsonl", "json", "gzip", "parquet"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        file = tmp_path / f"{count}.{kind}"
        rows = [{"id": number, "text": f"{number} " * 200} for number in range(count)]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=500)
        elif kind == "json":
            file.write_text(json.dumps(rows))
        else:
            file.write_bytes(gzip.compress(lines(rows)) if kind == "gzip" else lines(rows))
        del rows
        tracemalloc.start()
        try:
            read = open_rows("chat.train", str(file), split="train")
            arrow = [pa.total_allocated_bytes() for _ in read]  # which Python does not see
            assert len(arrow) == count
            return tracemalloc.get_traced_memory()[1] + max(arrow)
        finally:
            tracemalloc.stop()

    peak(10)  # what is imported on first use
    assert peak(8000) < peak(2000) + 1_500_000  # of 6 MB more
