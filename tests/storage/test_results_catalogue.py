"""The catalogue: views over whatever whole files there are, and nothing but reading."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitbank.errors import StoreError
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS, VERSION_KEY, write_rows

LOG_ROW = {"run": "r", "model": "m", "step": 10, "task": "all", "metric": "ce", "value": 1.5}


def test_tables_without_files_are_empty_with_the_right_columns(tmp_path: Path) -> None:
    catalogue = Catalogue([tmp_path])
    for table, schema in SCHEMAS.items():
        answer = catalogue.query(f"SELECT * FROM {table}")
        assert answer.num_rows == 0
        assert answer.column_names == schema.names
        assert [str(f.type) for f in answer.schema if f.name != "created_at"] == [
            str(f.type) for f in schema if f.name != "created_at"
        ]
    assert catalogue.rows("SELECT * FROM averages") == []


def test_views_that_no_query_named_are_there_for_whoever_asks(tmp_path: Path) -> None:
    shown = Catalogue([tmp_path]).rows("SELECT table_name FROM information_schema.tables")
    assert {"lambda_sweep", "cells", "runs", "cache_tokens"} <= {row["table_name"] for row in shown}
    with pytest.raises(StoreError, match="task_averages"):
        Catalogue([tmp_path]).query("SELECT * FROM task_average")


def test_several_directories_are_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, "training_log", [LOG_ROW], name)
    catalogue = Catalogue([tmp_path / "a", tmp_path / "b"])
    assert catalogue.rows("SELECT count(*) AS n FROM training_log") == [{"n": 2}]


@pytest.mark.parametrize("keep", [0, 3, 4, 11, 12, 100, -8, -1])
def test_a_torn_file_is_reported_and_left_out(tmp_path: Path, keep: int) -> None:
    whole = write_rows(tmp_path, "training_log", [LOG_ROW], "whole")
    torn = whole.with_name("torn.parquet")
    torn.write_bytes(whole.read_bytes()[:keep])
    catalogue = Catalogue([tmp_path])
    assert catalogue.rows("SELECT count(*) AS n FROM training_log") == [{"n": 1}]
    assert catalogue.torn == [torn]


def test_a_file_being_written_is_not_seen(tmp_path: Path) -> None:
    whole = write_rows(tmp_path, "training_log", [LOG_ROW], "whole")
    whole.with_name(".other.0123.partial").write_bytes(b"PAR1")
    catalogue = Catalogue([tmp_path])
    assert catalogue.rows("SELECT count(*) AS n FROM training_log") == [{"n": 1}]
    assert catalogue.torn == []


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training_log" / "x.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({f"{VERSION_KEY}99": "training_log"}), path)
    with pytest.raises(StoreError, match=rf"newer version \(schema 99, known {SCHEMA_VERSION}\)"):
        Catalogue([tmp_path]).read()


def test_a_long_footer_is_found(tmp_path: Path) -> None:
    table = pa.table({f"column_{index}": [1] for index in range(3000)})
    path = tmp_path / "runs" / "wide.parquet"
    path.parent.mkdir()
    pq.write_table(table.replace_schema_metadata({f"{VERSION_KEY}7": "runs"}), path)
    with pytest.raises(StoreError, match="schema 7"):
        Catalogue([tmp_path]).read("cells")


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--results: no directory"):
        Catalogue([tmp_path / "none"])


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FRO metrics", "Parser Error: syntax error"),
        ("SELECT nope FROM metrics", 'column "nope" not found'),
        ("SELECT * FROM metrix", "Did you mean"),
        ("SELECT 1; COPY (SELECT 1) TO '{tmp}/out.csv'", "only queries are allowed, got COPY"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{tmp}/out.csv'", "only queries are allowed"),
        ("ATTACH '{tmp}/db'", "only queries are allowed, got ATTACH"),
        ("SET enable_external_access = true", "only queries are allowed"),
        ("INSTALL httpfs", "only queries are allowed"),
        ("SELECT * FROM read_csv('{tmp}/secret.csv')", "Permission Error"),
        ("SELECT * FROM '{tmp}/secret.csv'", "sql: "),
        ("SELECT * FROM read_text('{tmp}/secret.csv')", "Permission Error"),
    ],
)
def test_bad_or_writing_sql_is_one_line(tmp_path: Path, sql: str, message: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(StoreError, match=message) as caught:
        Catalogue([tmp_path]).query(sql.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_paths_with_quotes(tmp_path: Path) -> None:
    odd = tmp_path / "it's; DROP"
    write_rows(odd, "training_log", [LOG_ROW], "x")
    assert Catalogue([odd]).rows("SELECT count(*) AS n FROM training_log") == [{"n": 1}]


def test_pivot_and_own_views(tmp_path: Path) -> None:
    rows = [{**LOG_ROW, "metric": metric, "value": value} for metric, value in (("ce", 1.0), ("kd", 2.0))]
    write_rows(tmp_path, "training_log", rows, "x")
    catalogue = Catalogue([tmp_path])
    catalogue.query("CREATE VIEW mine AS SELECT * FROM training_log WHERE step = 10")
    answer = catalogue.rows("PIVOT mine ON metric USING sum(value) GROUP BY step")
    assert answer == [{"step": 10, "ce": 1.0, "kd": 2.0}]
