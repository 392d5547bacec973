"""DuckDB over result files: views, no database file and no lock.

The files that exist when a catalogue is opened are the files it reads; writers go on meanwhile. A torn
file is reported and left out; a table without any file is an empty view with the right columns. Many
small files are read through one copy of them (`compaction`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from logitbank.errors import StoreError
from logitbank.storage.results.compaction import cached, renew, signatures
from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS, VERSION_KEY
from logitbank.storage.results.store_rows import EXAMPLES_SQL, TOKEN_SCHEMA, token_rows
from logitbank.storage.results.versions import select_rows, sql_list
from logitbank.storage.results.views import VIEWS

MAGIC = b"PAR1"
TAIL = 16 * 1024  # most footers fit
READ_ONLY = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # PIVOT
    duckdb.StatementType.CREATE,  # views and macros of one's own: in memory, gone with the process
    duckdb.StatementType.DROP,
}
WRITES_FILES = re.compile(r"^\s*explain\b.*\b(copy|export|attach)\b", re.IGNORECASE | re.DOTALL)


class Catalogue:
    """An in-memory DuckDB connection with a view for every table, and the tables derived from them.

    Attributes:
        connection: the DuckDB connection.
        torn: files that are no whole Parquet files and were left out.
        files: for each table, how many whole result files it has.
    """

    def __init__(self, results_dirs: Sequence[str | Path], stores: Sequence[str] = ()) -> None:
        """Open views over one or several result directories.

        Args:
            results_dirs: directories that `write_rows` filled.
            stores: teacher stores whose tokens become `cache_tokens` and `cache_examples`.

        Raises:
            StoreError: a directory or store that does not exist, or files of a newer version.
        """
        directories = [Path(directory) for directory in results_dirs]
        for directory in directories:
            if not directory.is_dir():
                raise StoreError(f"--results: no directory {directory}; evaluate-model --results DIR fills one")
        self.torn: list[Path] = []
        self.files: dict[str, int] = {}
        self.connection = duckdb.connect(":memory:", config={"python_enable_replacements": False})
        readable: list[str] = []
        for table in SCHEMAS:
            paths: dict[int, list[Path]] = {}
            for directory in directories:
                for version, found in self._readable_files(directory / table).items():
                    paths.setdefault(version, []).extend(found)
            self.connection.execute(f"CREATE VIEW {table} AS {select_rows(table, paths)}")
            readable += [str(path) for found in paths.values() for path in found]
        self.connection.register("cache_tokens", _cache_tokens(stores))
        self.connection.execute(f"CREATE VIEW cache_examples AS {EXAMPLES_SQL}")
        for name, sql in VIEWS.items():
            self.connection.execute(f"CREATE VIEW {name} AS {sql}")
        self._close_the_rest_of_the_world(readable)

    def query(self, sql: str) -> pa.Table:
        """The result of a query as a pyarrow table.

        Raises:
            StoreError: SQL that DuckDB refuses (its message in one line), or that would write.
        """
        try:
            statements = duckdb.extract_statements(sql)
            if not statements:
                raise StoreError("sql: expected a query such as SELECT * FROM cells, got nothing")
            for statement in statements:
                if statement.type not in READ_ONLY or WRITES_FILES.match(statement.query):
                    raise StoreError(f"sql: only queries are allowed here, got {statement.query.strip().split()[0]}")
            answer = self.connection.sql(sql)
            return pa.table({}) if answer is None else answer.to_arrow_table()
        except duckdb.Error as error:
            raise StoreError(f"sql: {one_line(error)}") from None

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The result of a query as a list of dicts."""
        return list(self.query(sql).to_pylist())

    def _readable_files(self, directory: Path) -> dict[int, list[Path]]:
        """What to read for one table of one directory: a copy of many files where there is one, and the rest.

        By schema version; the copy is of today's.
        """
        files = signatures(directory)
        copy, covered = cached(directory, files)
        sources = self._whole_files(directory, [name for name in files if name not in covered])
        if copy is not None:
            sources.setdefault(SCHEMA_VERSION, []).insert(0, copy)
        whole = {name: signature for name, signature in files.items() if directory / name not in self.torn}
        self.files[directory.name] = self.files.get(directory.name, 0) + len(whole)
        renewed = renew(directory, whole, sources)
        return sources if renewed is None else {SCHEMA_VERSION: [renewed]}

    def _whole_files(self, directory: Path, names: Sequence[str]) -> dict[int, list[Path]]:
        whole: dict[int, list[Path]] = {}
        for path in (directory / name for name in names):
            version = footer_version(path)
            if version is None:
                self.torn.append(path)
                continue
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{path}: written by a newer version (schema {version}, known {SCHEMA_VERSION}); update"
                )
            whole.setdefault(version, []).append(path)
        return whole

    def _close_the_rest_of_the_world(self, readable: Sequence[str]) -> None:
        """No query reads any other file, whatever it says."""
        self.connection.execute(f"SET allowed_paths = {sql_list(readable)}")
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")


def _cache_tokens(stores: Sequence[str]) -> pa.Table:
    return token_rows(stores) if stores else TOKEN_SCHEMA.empty_table()


def footer_version(path: Path) -> int | None:
    """Schema version of a result file, read from its footer; None where the file is torn.

    A Parquet file ends in its footer, the footer's length and a magic word: what was cut off or never
    finished lacks them. Files of other programs count as version 1.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        tail = file.read()
        length = int.from_bytes(tail[-8:-4], "little")
        if size < 12 or tail[-4:] != MAGIC or length + 12 > size:
            return None
        if length + 8 > len(tail):
            file.seek(size - length - 8)
            tail = file.read()
        file.seek(0)
        if file.read(4) != MAGIC:
            return None
    found = re.search(VERSION_KEY.encode() + rb"(\d+)", tail[-length - 8 :])
    return int(found[1]) if found else 1


def one_line(error: duckdb.Error) -> str:
    """DuckDB's message without the excerpt of the query that it draws below."""
    return " ".join(str(error).split("\nLINE ")[0].split())
