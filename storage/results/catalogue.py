"""DuckDB over result files: views, no database file and no lock.

A catalogue reads the files of a table that exist when a query first names it; writers are not blocked. A torn
file is reported and left out; a table without any file is an empty view with the right columns. Many small files
are read through a few copies of them (`compaction`), which the first query that names their table makes. A view is
created when a query first names it too, or asks which views there are: DuckDB plans each view that it creates. What
tables ask of many files is kept (`remembered`), and then DuckDB is asked nothing.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from logitbank.errors import StoreError
from logitbank.storage.results import remembered
from logitbank.storage.results.compaction import FORMAT, Copies, Signature, find_copies, renew, signatures
from logitbank.storage.results.label_rows import LABEL_SCHEMA, OOF_SQL, label_rows
from logitbank.storage.results.memory import Memory
from logitbank.storage.results.relations import RELATIONS, Relation, duckdb_type, nothing, sql_list
from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS, VERSION_KEY
from logitbank.storage.results.store_rows import EXAMPLES_SQL, TOKEN_SCHEMA, token_rows
from logitbank.storage.results.views import VIEWS

MAGIC = b"PAR1"
TAIL = 16 * 1024  # most footers fit, and most files of one cell
SCHEMA_OF_FILE = re.compile(VERSION_KEY.encode() + rb"(\d+)")
READ_ONLY = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # PIVOT
    duckdb.StatementType.CREATE,  # views and macros of one's own: in memory, gone with the process
    duckdb.StatementType.DROP,
}
# A query that lists what can be queried.
ASKS_WHAT_THERE_IS = re.compile(r"\b(show|pragma\w*|information_schema|duckdb_\w+|pg_\w+|sqlite_\w+)\b", re.IGNORECASE)
WRITES_FILES = re.compile(r"^\s*explain\b.*\b(copy|export|attach)\b", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class _Source:
    """What a relation is read from in one directory: copies, and result files for what is in none.

    `whole` holds the signature and schema version of every whole file, by name.
    """

    directory: Path
    whole: Mapping[str, tuple[Signature, int]]
    copies: Copies

    def new(self) -> dict[str, tuple[Signature, int]]:
        """The files that are in no copy."""
        return {name: about for name, about in self.whole.items() if name not in self.copies.versions}

    def renewed(self, memory: Memory) -> _Source:
        return replace(self, copies=renew(self.copies, self.new(), self.directory, memory))

    def without_what_vanished(self) -> _Source:
        """Without removed copies and files."""
        there = all(copy.path.exists() for copy in self.copies.copies)
        copies = self.copies if there else Copies(self.copies.relation, self.copies.index)
        names = self.whole.keys() - copies.versions.keys()
        lost = {name for name in names if not (self.directory / name).exists()}
        whole = {name: about for name, about in self.whole.items() if name not in lost}
        return replace(self, whole=whole, copies=copies)


class Catalogue:
    """An in-memory DuckDB connection with a view for every table, and the tables derived from them.

    Attributes:
        memory: memory that reading may use.
        torn: incomplete Parquet files that were skipped, of the tables read so far.
    """

    def __init__(
        self, results_dirs: Sequence[str | Path], stores: Sequence[str] = (), *, memory: int | None = None
    ) -> None:
        """Prepare views over one or several result directories; nothing is read before it is asked for.

        Args:
            results_dirs: directories that `write_rows` filled.
            stores: teacher stores, whose tokens become `cache_tokens` and `cache_examples`, and label stores, whose
                rows become `cache_labels` and `oof`.
            memory: bytes that the process should stay within; None: no limit but DuckDB's own.

        Raises:
            StoreError: a directory or store that does not exist.
        """
        self._directories = [Path(directory) for directory in results_dirs]
        for directory in self._directories:
            if not directory.is_dir():
                raise StoreError(f"--results: no directory {directory}; create one with evaluate-model --results DIR")
        self.memory = Memory.of(memory)
        self.torn: list[Path] = []
        self._listed: dict[Path, dict[str, Signature]] = {}
        self._digests: dict[Path, str] = {}
        self._steady = True  # no file has vanished while it was read
        self._stored = _stored(stores)
        self._read: set[str] = set()  # relations
        self._created: set[str] = set()  # views
        self._kept: set[str] = set()  # views
        self._to_keep: list[str] = []
        self._sources: dict[str, list[_Source]] = {name: [] for name in RELATIONS}

    @functools.cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Views that say that they are not read yet."""
        connection = self.memory.connect(python_enable_replacements=False)
        for relation in RELATIONS.values():
            connection.execute(f"CREATE VIEW {relation.name} AS {relation.unread()}")
        for name, schema, rows in zip(
            ("cache_tokens", "cache_labels"), (TOKEN_SCHEMA, LABEL_SCHEMA), self._stored, strict=True
        ):
            if rows is None:  # registering rows takes longer than all else here
                columns = {field.name: duckdb_type(field.type) for field in schema}
                connection.execute(f"CREATE VIEW {name} AS {nothing(columns)}")
            else:
                connection.register(name, rows)
        connection.execute(f"CREATE VIEW oof AS {OOF_SQL}")
        connection.execute(f"CREATE VIEW cache_examples AS {EXAMPLES_SQL}")
        self._close_the_rest_of_the_world(connection)
        return connection

    def read(self, *names: str) -> None:
        """Look for the files of the named tables, or of those that the named views are made of, by default of all.

        Queries do this themselves for the tables they name.

        Raises:
            StoreError: files of a newer version.
        """
        needed = frozenset().union(*map(_behind, names or (*RELATIONS, *VIEWS)))
        for name in sorted((needed & RELATIONS.keys()) - self._read):
            found = [self._find(directory, RELATIONS[name]) for directory in self._directories]
            self._sources[name] = [source.renewed(self.memory) for source in found]
            self._create_relation(name)
            self._read.add(name)
        self._create_views(needed)

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """The result of a query as a pyarrow table.

        Args:
            sql: the query.
            parameters: values of its `$name`; long lists are read faster from here than from SQL.

        Raises:
            StoreError: SQL that DuckDB rejects (its message on one line), or that would write.
        """
        try:
            statements = duckdb.extract_statements(sql)
            if not statements:
                raise StoreError("sql: expected a query such as SELECT * FROM cells, got an empty one")
            for statement in statements:
                if statement.type not in READ_ONLY or WRITES_FILES.match(statement.query):
                    raise StoreError(f"sql: only queries are allowed, got {statement.query.strip().split()[0]}")
            self._keep_views()
            self.read(*re.findall(r"\w+", sql.lower()))
            if ASKS_WHAT_THERE_IS.search(sql):
                self._create_views(VIEWS)
            try:
                return self._answer(sql, parameters)
            except duckdb.CatalogException:  # what it calls unknown, it compares with what is there
                self._create_views(VIEWS)
                return self._answer(sql, parameters)
            except duckdb.IOException:  # copies may be deleted at any time, and a writer may withdraw its files
                if not self._pass_over_what_vanished():
                    raise
                return self._answer(sql, parameters)
        except duckdb.Error as error:
            raise StoreError(f"sql: {one_line(error)}") from None

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The result of a query, whose answer follows from the result files alone, as a list of dicts."""
        answer = self.remembered(sql, re.findall(r"\w+", sql), lambda: self.query(sql))
        names, columns = answer.column_names, [column.to_pylist() for column in answer.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def remembered(self, what: str, names: Collection[str], make: Callable[[], pa.Table]) -> pa.Table:
        """A table that follows from result files: made, or what was made of the same files in any process.

        Where files are few, stores have a part in it, or files are torn, it is made each time.

        Args:
            what: the table, as nothing else is called: a query, or a name with all that decides beside the files.
            names: the tables and views that it is made of; others are passed over.
            make: what makes it.
        """
        tables = sorted({RELATIONS[name].table for name in set().union(*map(_behind, names)) & RELATIONS.keys()})
        places = [(directory / table, table) for directory in self._directories for table in tables]
        files = sum(len(self._files(place)) for place, _ in places)
        if any(rows is not None for rows in self._stored) or files <= remembered.ENOUGH:
            return make()
        digests = [(table, self._digest(place)) for place, table in places]
        key = remembered.key_of(FORMAT, VIEWS, RELATIONS, what, digests)
        answer = remembered.recall(self._directories[0], key)
        if answer is None:
            answer = make()
            if self._steady and not self.torn:
                remembered.keep(self._directories[0], key, answer)
        return answer

    def keep(self, *views: str) -> None:
        """Compute views once, in this order, for many queries that follow; not before the first of them."""
        self._to_keep += views

    def _keep_views(self) -> None:
        views, self._to_keep = self._to_keep, []
        for name in views:
            if name not in self._kept:
                self.read(*_named_in(VIEWS[name]))
                self._connection.execute(f"DROP VIEW IF EXISTS {name}")
                self._connection.execute(f"CREATE TABLE {name} AS {VIEWS[name]}")
                self._kept.add(name)

    def _answer(self, sql: str, parameters: Mapping[str, Any] | None) -> pa.Table:
        answer = self._connection.sql(sql, params=parameters)
        return pa.table({}) if answer is None else answer.to_arrow_table()

    def _find(self, results: Path, relation: Relation) -> _Source:
        """The files of a relation in one directory, and their copies."""
        directory = results / relation.table
        files = self._files(directory)
        copies = find_copies(results, relation, files)
        versions = dict(copies.versions)
        if versions.keys() != files.keys():
            for other in RELATIONS.values():
                if other.table == relation.table:
                    versions |= find_copies(results, other, files).versions
            unknown = {name: size for name, (size, _) in files.items() if name not in versions}
            versions |= _whole_files(directory, unknown)
        for name in sorted(files.keys() - versions.keys()):
            if directory / name not in self.torn:
                self.torn.append(directory / name)
        whole = {name: (signature, versions[name]) for name, signature in files.items() if name in versions}
        return _Source(directory, whole, copies)

    def _files(self, directory: Path) -> dict[str, Signature]:
        if directory not in self._listed:
            self._listed[directory] = signatures(directory)
        return self._listed[directory]

    def _digest(self, directory: Path) -> str:
        """Of the names, sizes and times of all files."""
        if directory not in self._digests:
            self._digests[directory] = remembered.key_of(self._files(directory))
        return self._digests[directory]

    def _create_views(self, names: Collection[str]) -> None:
        """Those of the names that are views and are not there yet; what they need is among the names."""
        for name, sql in VIEWS.items():
            if name in names and name not in self._created | self._kept:
                self._connection.execute(f"CREATE VIEW {name} AS {sql}")
                self._created.add(name)

    def _create_relation(self, name: str) -> None:
        copies: dict[Path, Sequence[int]] = {}
        paths: dict[int, list[Path]] = {}
        for source in self._sources[name]:
            copies |= source.copies.sources
            for file, (_, version) in source.new().items():
                paths.setdefault(version, []).append(source.directory / file)
        try:
            self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS {RELATIONS[name].select(copies, paths)}")
        except duckdb.IOException:
            if not self._pass_over_what_vanished():
                raise

    def _pass_over_what_vanished(self) -> bool:
        """Read on without what was removed since the catalogue was opened; False if nothing was."""
        before = {name: list(sources) for name, sources in self._sources.items()}
        self._sources = {name: [each.without_what_vanished() for each in own] for name, own in before.items()}
        changed = [name for name in before if self._sources[name] != before[name]]
        self._steady = self._steady and not changed
        for name in changed:
            self._create_relation(name)
        return bool(changed)

    def _close_the_rest_of_the_world(self, connection: duckdb.DuckDBPyConnection) -> None:
        """No query reads anything but result files and their copies, whatever it says."""
        readable = [directory / name for directory in self._directories for name in (*SCHEMAS, ".cache")]
        connection.execute(f"SET allowed_directories = {sql_list(readable)}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")


@functools.cache
def _behind(name: str) -> frozenset[str]:
    """A view, and the views and relations that it is made of; a relation; nothing for a word that is neither."""
    if name not in VIEWS:
        return frozenset([name]) & RELATIONS.keys()
    return frozenset([name]).union(*map(_behind, _named_in(VIEWS[name]) - {name}))


def _named_in(sql: str) -> set[str]:
    """The views and relations that SQL names."""
    return set(re.findall(r"\w+", sql)) & (VIEWS.keys() | RELATIONS.keys())


def _stored(stores: Sequence[str]) -> tuple[pa.Table | None, pa.Table | None]:
    """Rows of the teacher stores, and of the label stores; None without any store."""
    if not stores:
        return None, None
    from logitbank.storage.label_store import is_label_store  # Zarr takes longer to import than most queries to answer

    of_labels = [url for url in stores if is_label_store(url)]
    return token_rows([url for url in stores if url not in of_labels]), label_rows(of_labels)


def _whole_files(directory: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Schema version of each file that is whole, of files of the given sizes by name."""
    versions = {}
    for name, size in sizes.items():
        version = footer_version(f"{directory}/{name}", size)
        if version is not None and version > SCHEMA_VERSION:
            raise StoreError(
                f"{directory / name}: written by a newer version (schema {version}, known {SCHEMA_VERSION}); update"
            )
        if version is not None:
            versions[name] = version
    return versions


def footer_version(path: str, size: int) -> int | None:
    """Schema version of a result file, read from its footer; None if the file is torn.

    A Parquet file ends in its footer, the footer's length and a magic word: what was cut off or never
    finished lacks them. Files of other programs count as version 1.

    Args:
        path: of the file.
        size: its bytes.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        start = max(0, size - TAIL)
        tail = os.pread(descriptor, size - start, start)
        length = int.from_bytes(tail[-8:-4], "little")
        if size < 12 or tail[-4:] != MAGIC or length + 12 > size:
            return None
        if length + 8 > len(tail):
            tail = os.pread(descriptor, length + 8, size - length - 8)
        if (os.pread(descriptor, len(MAGIC), 0) if start else tail[: len(MAGIC)]) != MAGIC:
            return None
    finally:
        os.close(descriptor)
    found = SCHEMA_OF_FILE.search(tail, len(tail) - length - 8)
    return int(found[1]) if found else 1


def one_line(error: duckdb.Error) -> str:
    """DuckDB's message without the excerpt of the query that it draws below."""
    return " ".join(str(error).split("\nLINE ")[0].split())
