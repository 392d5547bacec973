"""SQL that reads result files of every schema version in today's columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from logitbank.storage.results.rows import SCHEMAS


def select_rows(table: str, paths_by_version: Mapping[int, Iterable[Path]]) -> str:
    """SQL for the rows of a table in today's columns, from whole result files of any known version.

    Files are matched by column name against an empty relation of today's types, so what an older version
    lacks is null. Files of one version have the same columns: only the first of them is looked at for its schema.

    Args:
        table: a key of `SCHEMAS`.
        paths_by_version: schema version -> files; without any, the relation is empty.
    """
    typed = ", ".join(f"CAST(NULL AS {_duckdb_type(field.type)}) AS {field.name}" for field in SCHEMAS[table])
    parts = [f"SELECT {typed} WHERE false"]
    for _, paths in sorted(paths_by_version.items()):
        parts.append(f"SELECT * FROM read_parquet({sql_list(paths)})")
    return f"SELECT {', '.join(SCHEMAS[table].names)} FROM ({' UNION ALL BY NAME '.join(parts)})"


def sql_list(values: Iterable[object]) -> str:
    """A DuckDB list of string literals."""
    return "[" + ", ".join("'" + str(value).replace("'", "''") + "'" for value in values) + "]"


def _duckdb_type(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"MAP({_duckdb_type(kind.key_type)}, {_duckdb_type(kind.item_type)})"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMPTZ"
    return {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}[kind]
