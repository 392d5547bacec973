"""Rows of the files that a configuration names, one at a time, each with its place for messages.

A name is a path, a glob, any URL that fsspec supports, or a hub id: `org/name`, `org/name:config/split`. A file whose
name ends in `.csv` is CSV with a header; of any other the content says what it is: JSON lines, a JSON array or Parquet.
All may be in gzip or zstd. JSON and CSV are read here and not by `datasets`, which settles the type of a column at the
beginning of a file and gives an error no line number.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from logitbank.errors import TaskError, counted
from logitbank.tasks.common import HubSource
from logitbank.tasks.hub import open_split, split_files

_COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd")
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", *_COMPRESSED_SUFFIXES)
_HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+)(?:/(?P<split>[\w.-]+))?)?")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # by a file's first bytes
_PARQUET = b"PAR1"
_CHUNK = 1 << 20  # characters of a JSON array that are read at a time
_LATEST_FAULT = 16  # an error so near the end of what was read may be a value that was cut, such as `\ud83`
_OTHER_BYTES = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes that are not UTF-8
_BATCH = 256  # rows of a Parquet file that are Python objects at a time
_LONGEST_CELL = 2**31 - 1  # characters, the most that `csv` takes everywhere; its default is 131,072


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        values: column -> value. Keys and columns that are null in Arrow, or empty in CSV, are left out.
        file: as messages call it.
        number: of the line in JSON lines, of the row elsewhere, from 1.
        unit: what the number counts: `line` or `row`.
    """

    values: Mapping[str, Any]
    file: str
    number: int
    unit: str

    @property
    def place(self) -> str:
        """`train.jsonl, line 17`."""
        return f"{self.file}, {self.unit} {self.number:,}"


ParquetReader = Callable[[str, "io.BufferedReader[Any]"], Iterator[Row]]  # given a file's name and content


class _File(NamedTuple):
    """A file to be read: its name in messages, and whether that says that it is CSV."""

    name: str
    open: Callable[[], BinaryIO]
    is_csv: bool


def open_rows(
    key: str, name: str, *, split: str, mirror: str | None = None, parquet: ParquetReader | None = None
) -> Iterator[Row]:
    """The rows of all files that a name stands for, in order; memory does not grow with them.

    Args:
        key: the configuration key that gives the name, for messages.
        name: path, glob, URL or hub id; a path that exists comes before a hub id.
        split: of a hub id that names none.
        mirror: directory of local clones of hub repositories; None for the hub.
        parquet: reads the rows of a Parquet file, for rows too large to become Python objects 256 at a time.

    Raises:
        TaskError: nothing of that name, a file that cannot be read or has no rows, a row that is not a JSON object.
    """
    source = _hub_source(name, split)
    read = parquet or _parquet_rows
    rows = _file_rows(key, _find(key, name), read) if source is None else _hub_rows(key, source, mirror, read)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise TaskError(f"{key}: {shlex.quote(name)} has no rows")


def _hub_source(name: str, split: str) -> HubSource | None:
    """The hub split that a name stands for; None if it is a path or URL."""
    found = _HUB_ID.fullmatch(name)
    if found is None or name.startswith(".") or name.endswith(_SUFFIXES) or Path(name).exists():
        return None
    return HubSource(found["path"], found["config"], found["split"] or split)


def _hub_rows(key: str, source: HubSource, mirror: str | None, read: ParquetReader) -> Iterator[Row]:
    """Rows of a hub split: from its files where they are of a kind that is read here, else by `datasets`."""
    try:
        files = split_files(source, mirror)
        own = files is not None and all(name.endswith(_SUFFIXES) for name in files.names)
        rows = None if own else open_split(source, mirror)
    except TaskError as error:
        raise TaskError(f"{key}: no such file, and not readable as a hub id: {error}") from None
    if files is not None and rows is None:
        names = [f"{source.path}: {PurePosixPath(name).name}" for name in files.names]
        openers = [_opener(fsspec.filesystem("file"), str(path)) for path in files.paths]
        csvs = map(_is_csv, files.names)
        yield from _file_rows(key, [_File(*file) for file in zip(names, openers, csvs, strict=True)], read)
        return
    for number, values in enumerate(rows or (), start=1):
        yield Row(_without_null(values), str(source), number, "row")


def _file_rows(key: str, files: list[_File], read: ParquetReader) -> Iterator[Row]:
    for file in files:
        with _one_line(key, file.name), file.open() as opened:
            plain = _decompressed(opened)
            if plain.peek(len(_PARQUET)).startswith(_PARQUET):
                yield from read(file.name, plain)
            elif file.is_csv:
                yield from _csv_rows(key, file.name, plain)
            else:
                yield from _json_rows(key, file.name, plain)


def _find(key: str, name: str) -> list[_File]:
    """The files that a path, glob or URL stands for, in order of their names."""
    with _one_line(key, shlex.quote(name)):
        filesystem, path = fsspec.core.url_to_fs(name)
        if filesystem.isdir(path):
            raise TaskError(
                f"{key}: {shlex.quote(name)} is a directory; give its files instead, such as "
                f"{shlex.quote(name)}/*.jsonl"
            )
        if filesystem.isfile(path):
            return [_File(shlex.quote(name), _opener(filesystem, path), _is_csv(path))]
        if _is_glob(name) and (found := [file for file in sorted(filesystem.glob(path)) if filesystem.isfile(file)]):
            return [_File(_shown(name, file), _opener(filesystem, file), _is_csv(file)) for file in found]
    hub = "" if "://" in name else ", nor a hub id (org/name, org/name:config/split)"
    kind = "file matches" if _is_glob(name) else "file"
    raise TaskError(f"{key}: no {kind} {shlex.quote(name)}{hub}")


def _is_glob(name: str) -> bool:
    return not _is_web(name) and any(sign in name for sign in "*?[")


def _is_web(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _shown(name: str, file: str) -> str:
    """A file that a glob found, as a person would write it who wrote the glob."""
    if "://" in name:
        return shlex.quote(f"{name.partition('://')[0]}://{file}")
    return shlex.quote(file if Path(name).is_absolute() or name.startswith("~") else os.path.relpath(file))


def _is_csv(path: str) -> bool:
    """Whether a file is CSV by its name, of which a web address may ask for a version or a download."""
    name = PurePosixPath(path.partition("?")[0] if _is_web(path) else path)
    while name.suffix in _COMPRESSED_SUFFIXES:
        name = name.with_suffix("")
    return name.suffix == ".csv"


def _opener(filesystem: Any, path: str) -> Callable[[], BinaryIO]:
    return lambda: filesystem.open(path, "rb")


@contextlib.contextmanager
def _one_line(key: str, name: str) -> Iterator[None]:
    """Errors of files, of decompression and of an object store's own client as one line."""
    try:
        yield
    except TaskError:
        raise
    except ImportError as error:
        raise TaskError(f"{key}: {name}: {error}; it needs a package that is not installed") from None
    except Exception as error:  # each client has its own family: no credentials, no connection …
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TaskError(f"{key}: {name} cannot be read: {reason}") from error


def _decompressed(opened: BinaryIO) -> io.BufferedReader[Any]:
    """The content of a file, decompressed where its first bytes say that it is compressed."""
    buffered: io.BufferedReader[Any] = io.BufferedReader(opened)
    start = buffered.peek(4)
    for magic, codec in _COMPRESSED.items():
        if start.startswith(magic):
            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(buffered, "r"), codec))
    return buffered


def _json_rows(key: str, name: str, content: io.BufferedReader[Any]) -> Iterator[Row]:
    """Rows of JSON lines, or of one JSON array."""
    start = content.peek(_LATEST_FAULT).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        yield from _array_rows(key, name, content)
        return
    for number, line in enumerate(content, start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number:,}"
        try:
            values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip())
        except UnicodeDecodeError:
            raise TaskError(f"{key}: {place}: expected UTF-8 text, got other bytes") from None
        except json.JSONDecodeError as error:
            hint = "; expected one JSON object a line, or one array of them" if number == 1 else ""
            raise TaskError(f"{key}: {place}: not valid JSON: {error.msg} at column {error.colno:,}{hint}") from None
        yield Row(_object(key, place, values), name, number, "line")


def _csv_rows(key: str, name: str, content: io.BufferedReader[Any]) -> Iterator[Row]:
    """Rows of CSV, every value a text; cells may hold line breaks, so rows are counted and not lines."""
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    number = 0
    try:
        filled = (cells for cells in csv.reader(text, strict=True) if cells)  # an empty line is not a row
        header = next(filled, [])
        if twice := [column for column in header if header.count(column) > 1]:
            raise TaskError(f"{key}: {name}: expected each column once, got {twice[0]!r} twice")
        while True:
            number += 1
            if (cells := next(filled, None)) is None:
                return
            if len(cells) != len(header):
                raise csv.Error(
                    f"expected {counted(len(header), 'cell')} like the header, got {len(cells):,}; put quotes around "
                    "cells with commas or line breaks"
                )
            if any(not cell.isascii() and _OTHER_BYTES.search(cell) for cell in cells):
                raise csv.Error("expected UTF-8 text, got other bytes")
            yield Row({column: cell for column, cell in zip(header, cells, strict=True) if cell}, name, number, "row")
    except csv.Error as error:
        raise TaskError(f"{key}: {name}, row {number:,}: {error}") from None
    finally:
        text.detach()  # the file is closed by who opened it


def _array_rows(key: str, name: str, content: io.BufferedReader[Any]) -> Iterator[Row]:
    """Rows of a JSON array, decoded one by one from a window that slides over the file."""
    text = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
    window = _Window(text)
    decoder = json.JSONDecoder()
    number = 0
    try:
        window.skip("[")
        while not window.skip("]"):
            if number:
                window.require(",")
            number += 1
            place = f"{name}, row {number:,}"
            yield Row(_object(key, place, window.decode(decoder)), name, number, "row")
        if (rest := window.next_sign()) != "":
            raise ValueError(f"expected the end of the file after the array, got {rest!r}")
    except TaskError:
        raise
    except UnicodeDecodeError:
        raise TaskError(f"{key}: {name}, row {number:,}: expected UTF-8 text, got other bytes") from None
    except ValueError as error:
        raise TaskError(
            f"{key}: {name}, row {number:,}: not valid JSON: {error.args[0].partition(': line')[0]}"
        ) from None
    finally:
        text.detach()  # the file is closed by who opened it


class _Window:
    """The part of a text that is looked at: it moves on as values are taken, and grows only for a longer value."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._held = ""
        self._at = 0

    def next_sign(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._held):
                sign = self._held[self._at]
                if not sign.isspace():
                    return sign
                self._at += 1
            if not self._more(_CHUNK):
                return ""

    def skip(self, sign: str) -> bool:
        """Whether the next character is this one; if so, it is taken."""
        found = self.next_sign() == sign
        self._at += found
        return found

    def require(self, sign: str) -> None:
        """Take this character; ValueError if another is next."""
        if not self.skip(sign):
            raise ValueError(f"expected {sign!r}, got {self.next_sign() or 'the end of the file'}")

    def decode(self, decoder: json.JSONDecoder) -> Any:
        """Take the next value; ValueError if it is none."""
        self.next_sign()
        chunk = _CHUNK
        while True:
            try:
                value, self._at = decoder.raw_decode(self._held, self._at)
                return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._held) - _LATEST_FAULT
                if not (cut and self._more(chunk)):
                    raise
                chunk *= 2  # what is decoded again stays in proportion to what is read

    def _more(self, size: int) -> bool:
        """Read on, dropping what was taken; False at the end."""
        read = self._text.read(size)
        self._held, self._at = self._held[self._at :] + read, 0
        return bool(read)


def _object(key: str, place: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise TaskError(f"{key}: {place}: expected a JSON object, got {type(values).__name__}")
    return values


def _parquet_rows(name: str, opened: io.BufferedReader[Any]) -> Iterator[Row]:
    file, number = pq.ParquetFile(opened), 0
    columns = pa.struct(file.schema_arrow)
    for group in range(file.num_row_groups):  # over all of them at once, it reads ahead without bound
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group]):
            for values in batch.to_pylist():
                number += 1
                yield Row(_plain(values, columns), name, number, "row")


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value of this type with its JSON decoded, and without the keys that a struct has from other rows alone."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {item.name: _plain(value[item.name], item.type) for item in kind if value[item.name] is not None}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_plain(item, kind.value_type) for item in value]
    return value


def _without_null(value: Any) -> Any:
    """A value of `datasets` without the keys that it has from other rows alone; in its lists, null stays."""
    if isinstance(value, Mapping):
        return {name: _without_null(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    return value
