"""What copies are made of: each table, and what the intervals need of its predictions, as SQL over result files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from logitbank.storage.results.rows import SCHEMAS

SOURCE = "source"  # column of copies: which of the files a row is of

# One row for each run, task, language and method. The order of the examples is that of their hashes, so that cells
# asked the same examples list them alike; in `numbers` the statistics of one example are adjacent.
_STATISTICS = {
    "run": "VARCHAR",
    "task": "VARCHAR",
    "language": "VARCHAR",
    "method": "VARCHAR",
    "examples": "BIGINT",
    "hashes": "UBIGINT[]",
    "clusters": "UBIGINT[]",  # of the same examples; null if no row is of one
    "names": "VARCHAR[][]",  # the statistics' names; several lists where examples differ in them
    "numbers": "DOUBLE[]",
}
_STATISTICS_OF_ROWS = """
    SELECT run, task, language, method, count(*) AS examples,
           list(hash ORDER BY hash, source, place) AS hashes,
           CASE WHEN count(cluster) > 0 THEN list(cluster_hash ORDER BY hash, source, place) END AS clusters,
           list(DISTINCT map_keys(statistics)) AS names,
           flatten(list(map_values(statistics) ORDER BY hash, source, place)) AS numbers, source
    FROM (SELECT *, hash(example_id) AS hash, CASE WHEN cluster IS NULL THEN hash ELSE hash(cluster) END AS cluster_hash
          FROM ({rows}))
    GROUP BY source, run, task, language, method
"""


@dataclass(frozen=True)
class Relation:
    """Rows that follow from each result file of a table by itself.

    Attributes:
        name: of its view, and how its copies' names begin.
        table: whose files it is made of, a key of `SCHEMAS`.
        columns: name -> DuckDB type.
        of_rows: SQL over `{rows}`, those of the files with `source` and `place` in it; it keeps `source`. None: the
            rows as they are.
        row_group: rows that a copy is written, and read, at a time.
    """

    name: str
    table: str
    columns: Mapping[str, str]
    of_rows: str | None = None
    row_group: int = 32 * 1024

    def unread(self) -> str:
        """SQL for an empty relation that no query may answer from."""
        why = f"{self.name} is not read yet: name it in the query"
        return f"{nothing(self.columns).removesuffix('WHERE false')} WHERE error('{why}') IS NULL"

    def from_files(self, paths_by_version: Mapping[int, Sequence[Path]]) -> str:
        """SQL for the relation's columns and `source`, the number of a row's file among all paths.

        Files are matched by column name against an empty relation of today's types, so what an older version
        lacks is null. Files of one version have the same columns: only the first of them is looked at for its schema.

        Args:
            paths_by_version: schema version -> whole result files; without any, the relation is empty.
        """
        columns = {field.name: duckdb_type(field.type) for field in SCHEMAS[self.table]}
        parts, before = [nothing({**columns, SOURCE: "BIGINT", "place": "BIGINT"})], 0
        for _, paths in sorted(paths_by_version.items()):
            parts.append(
                f"SELECT *, file_index + {before} AS {SOURCE}, file_row_number AS place "
                f"FROM read_parquet({sql_list(paths)})"
            )
            before += len(paths)
        rows = " UNION ALL BY NAME ".join(parts)
        if self.of_rows is None:
            return f"SELECT {', '.join(columns)}, {SOURCE} FROM ({rows})"
        return self.of_rows.format(rows=rows)

    def from_copies(self, copies: Mapping[Path, Sequence[int]]) -> str:
        """SQL for the same from copies, each but for the rows of the given sources."""
        parts = [nothing({**self.columns, SOURCE: "BIGINT"})]
        whole = [path for path, without in copies.items() if not without]
        if whole:
            parts.append(f"SELECT * FROM read_parquet({sql_list(whole)})")
        for path, without in copies.items():
            if without:
                gone = ", ".join(map(str, without))
                parts.append(f"SELECT * FROM read_parquet({sql_list([path])}) WHERE {SOURCE} NOT IN ({gone})")
        return f"SELECT {', '.join(self.columns)}, {SOURCE} FROM ({' UNION ALL '.join(parts)})"

    def select(self, copies: Mapping[Path, Sequence[int]], paths_by_version: Mapping[int, Sequence[Path]]) -> str:
        """SQL for the relation's columns, from copies and what is not in them."""
        return (
            f"SELECT {', '.join(self.columns)} FROM "
            f"({self.from_copies(copies)} UNION ALL {self.from_files(paths_by_version)})"
        )


def sql_list(values: Iterable[object]) -> str:
    """A DuckDB list of string literals."""
    return "[" + ", ".join("'" + str(value).replace("'", "''") + "'" for value in values) + "]"


def nothing(columns: Mapping[str, str]) -> str:
    """SQL for no row, with columns of the given DuckDB types."""
    return "SELECT " + ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in columns.items()) + " WHERE false"


def duckdb_type(kind: pa.DataType) -> str:
    """DuckDB's name of a pyarrow type of the schemas."""
    if pa.types.is_map(kind):
        return f"MAP({duckdb_type(kind.key_type)}, {duckdb_type(kind.item_type)})"
    if pa.types.is_list(kind):
        return f"{duckdb_type(kind.value_type)}[]"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMPTZ"
    return {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}[kind]


RELATIONS: dict[str, Relation] = {
    **{
        table: Relation(table, table, {field.name: duckdb_type(field.type) for field in schema})
        for table, schema in SCHEMAS.items()
    },
    "example_statistics": Relation("example_statistics", "predictions", _STATISTICS, _STATISTICS_OF_ROWS, 2048),
}
