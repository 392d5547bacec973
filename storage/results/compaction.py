"""A few files instead of thousands: copies of many small result files that readers make for readers.

Opening and decoding a Parquet file takes up to a millisecond, so five thousand runs take seconds however few their
rows. `RESULTS/.cache/<relation>.json` names copies beside it, each with the result files (name, size, modification
time, schema version) whose rows it holds, numbered as in its column `source`. The result files stay what counts.
Whatever is in no copy is read from its own file, until there is enough of it for one more copy; copies no larger
than that are merged into it, so that their number grows with the logarithm of the files'. The rows of a file that
changed or went away are passed over. What another version wrote is made anew. Deleting `.cache` is safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from logitbank.storage.results.memory import Memory
from logitbank.storage.results.relations import SOURCE, Relation, sql_list
from logitbank.storage.results.rows import SCHEMA_VERSION

# A hash of strings is the DuckDB version's own, the columns are the schema's.
FORMAT = f"3 schema {SCHEMA_VERSION} duckdb {duckdb.__version__}"
ENOUGH = 100  # files in no copy that are worth one
MOST_GONE = 100  # files of a copy that may have gone before it is made anew
PART = 250  # files that are worth a thread of their own
KEEP_SECONDS = 3600  # other readers may still be reading copies that are no longer named

Signature = tuple[int, int]  # size in bytes, modification time in nanoseconds


@dataclass(frozen=True)
class Copy:
    """One Parquet file with the rows of many.

    Attributes:
        path: of the copy.
        files: name, signature and schema version of each result file, in the order of their sources.
        gone: sources whose files have changed or gone since.
    """

    path: Path
    files: Sequence[tuple[str, Signature, int]]
    gone: Sequence[int] = ()

    def live(self) -> list[tuple[str, Signature, int]]:
        """The files whose rows count."""
        gone = set(self.gone)
        return [file for source, file in enumerate(self.files) if source not in gone] if gone else list(self.files)


@dataclass(frozen=True)
class Copies:
    """The copies of one relation of one directory.

    Attributes:
        relation: whose rows they hold.
        index: the file that names them.
        copies: those that can be read.
        versions: schema version of every file that they hold and that still is what it was.
    """

    relation: Relation
    index: Path
    copies: Sequence[Copy] = ()
    versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def sources(self) -> dict[Path, Sequence[int]]:
        """The copies, each with the sources to leave out."""
        return {copy.path: copy.gone for copy in self.copies}


def signatures(directory: Path) -> dict[str, Signature]:
    """Every `*.parquet` file of a directory with its size and modification time; empty without directory."""
    found: dict[str, Signature] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(".parquet") and not name.startswith("."):
                try:
                    status = entry.stat()
                except FileNotFoundError:  # removed since it was listed
                    continue
                found[name] = (status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items()))


def find_copies(results: Path, relation: Relation, files: Mapping[str, Signature]) -> Copies:
    """The copies that are still true for the files of `RESULTS/<table>`."""
    index = results / ".cache" / f"{relation.name}.json"
    copies: list[Copy] = []
    versions: dict[str, int] = {}
    for entry in _entries(index):
        try:
            path = index.with_name(entry["copy"])
            sizes = zip(entry["sizes"], entry["times"], strict=True)
            held = list(zip(entry["names"], sizes, entry["versions"], strict=True))
            valid = path.stat().st_size == entry["bytes"]
        except (OSError, KeyError, TypeError, ValueError):
            continue
        gone = [source for source, (name, signature, _) in enumerate(held) if files.get(name) != signature]
        if valid and len(gone) <= MOST_GONE and len(gone) < len(held):
            copies.append(Copy(path, held, gone))
            versions |= {name: version for name, _, version in copies[-1].live()}
    return Copies(relation, index, copies, versions)


def renew(found: Copies, new: Mapping[str, tuple[Signature, int]], directory: Path, memory: Memory) -> Copies:
    """Copy what is in no copy yet, where there is enough of it.

    Args:
        found: the copies there are.
        new: whole files that are in none of them, by name: signature and schema version.
        directory: where they are.
        memory: what making copies may use.

    Returns:
        The copies there are now: those found, where there is too little to copy or it cannot be written.
    """
    if len(new) <= ENOUGH:
        return found
    kept, merged = _tiers(found.copies, len(new))
    base = found.index.with_name(f"{found.relation.name}-{uuid.uuid4().hex[:12]}")
    pieces = _pieces(new, memory)
    jobs = [
        _Job(found.relation, base.with_name(f"{base.name}-{number}.parquet"), [] if number else merged, piece)
        for number, piece in enumerate(pieces)
    ]
    threads = min(len(jobs), memory.threads)
    try:
        found.index.parent.mkdir(exist_ok=True)
        with ThreadPoolExecutor(threads) as pool:
            made = list(pool.map(lambda job: job.run(directory, memory.share(threads)), jobs))
        copies = [*kept, *made]
        _write_index(found.index, copies)
        _remove_old(found.index, copies)
    except (OSError, duckdb.Error):  # a directory that cannot be written is read file by file
        for job in jobs:
            with contextlib.suppress(OSError):
                job.path.unlink(missing_ok=True)
        return found
    versions = {**found.versions, **{name: version for name, (_, version) in new.items()}}
    return Copies(found.relation, found.index, copies, versions)


@dataclass(frozen=True)
class _Job:
    """One copy to be made: of other copies, then of files."""

    relation: Relation
    path: Path
    copies: Sequence[Copy]
    new: Mapping[str, tuple[Signature, int]]

    def run(self, directory: Path, memory: Memory) -> Copy:
        """Write the copy under its name, whole."""
        held: list[tuple[str, Signature, int]] = []
        parts = []
        for copy in self.copies:
            sql = self.relation.from_copies({copy.path: copy.gone})
            # Sources stay consecutive where some are gone.
            number = " ".join(f"- ({SOURCE} > {source})::BIGINT" for source in copy.gone)
            parts.append(f"SELECT * REPLACE ({SOURCE} {number} + {len(held)} AS {SOURCE}) FROM ({sql})")
            held += copy.live()
        by_version: dict[int, list[Path]] = {}
        for name, (_, version) in self.new.items():
            by_version.setdefault(version, []).append(directory / name)
        sql = self.relation.from_files(by_version)
        parts.append(f"SELECT * REPLACE ({SOURCE} + {len(held)} AS {SOURCE}) FROM ({sql})")
        held += [(path.name, *self.new[path.name]) for _, paths in sorted(by_version.items()) for path in paths]
        partial = self.path.with_suffix(".partial")
        try:
            with memory.connect(threads=1) as connection:
                connection.execute(
                    f"COPY ({' UNION ALL '.join(parts)}) TO {sql_list([partial])[1:-1]} "
                    f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {self.relation.row_group})"
                )
            partial.rename(self.path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return Copy(self.path, held)


def _tiers(copies: Sequence[Copy], new: int) -> tuple[list[Copy], list[Copy]]:
    """The copies to keep, and those to merge with so many new files: all not larger than what they are merged with."""
    kept, merged = sorted(copies, key=lambda copy: len(copy.files), reverse=True), []
    while kept and len(kept[-1].files) <= new:
        merged.append(kept.pop())
        new += len(merged[-1].files)
    return kept, merged[::-1]


def _pieces(new: Mapping[str, tuple[Signature, int]], memory: Memory) -> list[dict[str, tuple[Signature, int]]]:
    """The new files, in the order of their names, by what one thread takes at a time."""
    files = max(PART, -(-len(new) // memory.threads))
    pieces: list[dict[str, tuple[Signature, int]]] = [{}]
    held = 0
    for name, about in sorted(new.items()):
        size = about[0][0]
        if pieces[-1] and (len(pieces[-1]) == files or held + size > memory.piece):
            pieces.append({})
            held = 0
        pieces[-1][name] = about
        held += size
    return pieces


def _entries(index: Path) -> list[Any]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        return list(content["copies"]) if content["format"] == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_index(index: Path, copies: Sequence[Copy]) -> None:
    entries = [
        {
            "copy": copy.path.name,
            "bytes": copy.path.stat().st_size,
            "names": [name for name, _, _ in copy.files],
            "sizes": [size for _, (size, _), _ in copy.files],
            "times": [time for _, (_, time), _ in copy.files],
            "versions": [version for _, _, version in copy.files],
        }
        for copy in copies
    ]
    temporary = index.with_name(f"{index.stem}-{uuid.uuid4().hex[:12]}.json.partial")
    temporary.write_text(json.dumps({"format": FORMAT, "copies": entries}), encoding="utf-8")
    temporary.replace(index)


def _remove_old(index: Path, current: Sequence[Copy]) -> None:
    named, now = {copy.path for copy in current}, index.stat().st_mtime
    for path in index.parent.glob(f"{index.stem}-*"):
        with contextlib.suppress(FileNotFoundError):  # another reader was faster
            if path not in named and now - path.stat().st_mtime > KEEP_SECONDS:
                path.unlink()
