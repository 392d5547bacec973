"""One file instead of thousands: a copy of many small result files that readers make for readers.

Opening a Parquet file takes about a millisecond, so five thousand runs take seconds however few their
rows. `RESULTS/.cache/<table>.json` names a Parquet file beside it and the result files (name, size,
modification time) whose rows it holds. The result files stay what counts: whatever is new is read from
its own file, and a cached file that changed or went away makes the cache void. Deleting `.cache` is safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from logitbank.storage.results.rows import SCHEMA_VERSION
from logitbank.storage.results.versions import select_rows, sql_list

ENOUGH = 300  # files of one table that are worth a copy
SHARE = 0.1  # a copy is renewed once so many of the files are not in it
KEEP_SECONDS = 3600  # other readers may still be reading the copy before

Signature = list[int]  # size in bytes, modification time in nanoseconds


def signatures(directory: Path) -> dict[str, Signature]:
    """Every `*.parquet` file of a directory with its size and modification time; empty without directory."""
    found: dict[str, Signature] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    status = entry.stat()
                    found[entry.name] = [status.st_size, status.st_mtime_ns]
    return dict(sorted(found.items()))


def cached(directory: Path, files: dict[str, Signature]) -> tuple[Path | None, set[str]]:
    """The copy that is still true for the files of `RESULTS/<table>`, and the names it covers."""
    try:
        index = json.loads(_index_path(directory).read_text(encoding="utf-8"))
        copy = _index_path(directory).with_name(index["copy"])
        covered = index["files"]
        valid = index["version"] == SCHEMA_VERSION and copy.stat().st_size == index["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, set()
    if not valid or any(files.get(name) != signature for name, signature in covered.items()):
        return None, set()
    return copy, set(covered)


def renew(directory: Path, files: dict[str, Signature], sources: Mapping[int, Sequence[Path]]) -> Path | None:
    """Copy the sources into one file where that is worth it; None where it is not, or cannot be.

    Args:
        directory: `RESULTS/<table>`.
        files: the whole files that the sources hold the rows of.
        sources: what to read, by schema version: single files, or the copy before and what is new.
    """
    new = sum(len(paths) for paths in sources.values())
    if new <= max(ENOUGH, SHARE * len(files)):
        return None
    index = _index_path(directory)
    copy = index.with_name(f"{directory.name}-{uuid.uuid4().hex[:12]}.parquet")
    partial = copy.with_suffix(".partial")
    try:
        index.parent.mkdir(exist_ok=True)
        with duckdb.connect(":memory:") as connection:
            connection.execute(
                f"COPY ({select_rows(directory.name, sources)}) "
                f"TO {sql_list([partial])[1:-1]} (FORMAT parquet, COMPRESSION zstd)"
            )
        partial.rename(copy)
        content = {
            "version": SCHEMA_VERSION,
            "copy": copy.name,
            "bytes": copy.stat().st_size,
            "files": files,
        }
        temporary = index.with_name(f"{copy.stem}.json.partial")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(index)
        _remove_old(index, copy)
    except (OSError, duckdb.Error):  # a directory that cannot be written is read file by file
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return None
    return copy


def _index_path(directory: Path) -> Path:
    return directory.parent / ".cache" / f"{directory.name}.json"


def _remove_old(index: Path, current: Path) -> None:
    for path in index.parent.glob(f"{index.stem}-*"):
        if path != current and current.stat().st_mtime - path.stat().st_mtime > KEEP_SECONDS:
            path.unlink(missing_ok=True)
