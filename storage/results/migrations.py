"""How result files of an older schema version are read: numbered steps, each from one version to the next.

Files are never rewritten, so a migration is a projection: SQL for the columns that the next version has
and this one lacks, over the columns of this one. To change the schema of `storage.results`: raise its
`SCHEMA_VERSION`, and add the step from the version before here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS

# version -> table -> {column of version + 1: its SQL over the columns of this version}
STEPS: dict[int, dict[str, dict[str, str]]] = {
    1: {"predictions": {"prompt": "CAST(NULL AS VARCHAR)"}},
}


def select_rows(table: str, paths_by_version: Mapping[int, Iterable[Path]]) -> str:
    """SQL for the rows of a table in today's columns, from whole result files of any known version.

    Args:
        table: a key of `SCHEMAS`.
        paths_by_version: schema version -> files; at least one file in all.
    """
    parts = []
    for version, paths in sorted(paths_by_version.items()):
        rows = f"SELECT * FROM read_parquet({sql_list(paths)})"
        for number in range(version, SCHEMA_VERSION):
            added = STEPS[number].get(table, {})
            rows = f"SELECT *{''.join(f', {sql} AS {name}' for name, sql in added.items())} FROM ({rows})"
        parts.append(f"SELECT {', '.join(SCHEMAS[table].names)} FROM ({rows})")
    return " UNION ALL ".join(parts)


def sql_list(values: Iterable[object]) -> str:
    """A DuckDB list of string literals."""
    return "[" + ", ".join("'" + str(value).replace("'", "''") + "'" for value in values) + "]"
