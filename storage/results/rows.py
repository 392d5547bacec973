"""Result rows: immutable Parquet files, one directory per table, written by many jobs at once.

`RESULTS/<table>/<name>.parquet`; nothing is ever appended to or rewritten (a writer that repeats its work
withdraws its own files first), so that readers need no lock (`catalogue` opens DuckDB views over the files).
Metric values are fractions, cross-entropies and divergences nats.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from logitbank.errors import OutputError, StoreError

# A new version adds nullable columns, or lets one be null, and changes nothing else: files of all versions are then
# read by column name, and what an older one lacks is null.
SCHEMA_VERSION = 5
VERSION_KEY = "logitbank.results.v"  # footer key, version appended: found without decoding the footer
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=@+-]*")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


# Who was evaluated: shared by `predictions` and `metrics`, in this order.
_IDENTITY = [
    _required("run", pa.string()),  # one call of evaluate-model on one checkpoint; key of `runs`
    _required("model", pa.string()),
    _required("condition", pa.string()),
    pa.field("checkpoint", pa.string()),  # null: the base model itself
    pa.field("step", pa.int64()),  # training step of the checkpoint
    pa.field("seed", pa.int64()),  # seed of the training run, else of the evaluation
    _required("task", pa.string()),
    _required("language", pa.string()),
    _required("split", pa.string()),
    _required("method", pa.string()),  # generate | likelihood | teacher_forced | classify | imported
]

SCHEMAS: dict[str, pa.Schema] = {
    "predictions": pa.schema(
        [
            *_IDENTITY,
            _required("example_id", pa.string()),
            pa.field("cluster", pa.string()),  # rows of one cluster are resampled together; null: each by itself
            _required("prompt_hash", pa.string()),  # of the prompt's token ids
            _required("demonstrations", pa.int64()),  # kept in the prompt
            pa.field("demonstrations_wanted", pa.int64()),  # before any was dropped for length
            pa.field("prompt", pa.string()),  # all that the model read, as text
            _required("question", pa.string()),  # the user's turn, without demonstrations
            _required("output", pa.string()),  # raw model text
            pa.field("cut_short", pa.bool_()),  # generation ended at its limit, not at an end of turn
            pa.field("parsed", pa.string()),  # JSON; null if nothing could be parsed
            pa.field("gold", pa.string()),  # JSON of the reference; null if nobody gave one
            pa.field("score", pa.float64()),  # the primary metric on this example alone; null without a reference
            _required("statistics", pa.map_(pa.string(), pa.float64())),  # their means give every metric
        ]
    ),
    "metrics": pa.schema(
        [
            *_IDENTITY,
            _required("metric", pa.string()),
            _required("value", pa.float64()),  # a fraction, not a percentage; cross_entropy, kl and log_loss in nats
            _required("is_primary", pa.bool_()),  # the metric that tables and averages use
            pa.field("examples", pa.int64()),  # null where a published number does not say
            pa.field("demonstrations", pa.float64()),  # mean kept in a prompt
            pa.field("demonstrations_wanted", pa.float64()),  # mean before any was dropped for length
            pa.field("cut_short", pa.float64()),  # share of answers that ended at the limit of new tokens
            pa.field("examples_hash", pa.string()),  # of questions and gold answers
            pa.field("demonstrations_hash", pa.string()),  # of the demonstrations drawn for them
            pa.field("against", pa.string()),  # the teacher that kl and agreement are of, as in `taught_by`
        ]
    ),
    "runs": pa.schema(
        [
            _required("run", pa.string()),
            _required("kind", pa.string()),  # training | evaluation | import
            _required("model", pa.string()),
            pa.field("condition", pa.string()),
            pa.field("checkpoint", pa.string()),
            pa.field("step", pa.int64()),
            pa.field("seed", pa.int64()),
            pa.field("view", pa.string()),  # teacher view; null for cross-entropy only
            pa.field("lambda_distill", pa.float64()),
            pa.field("strategy", pa.string()),
            pa.field("variant", pa.string()),  # how it was distilled, to read: "λ=0.05", "entropy λ=0.5"
            pa.field("setup", pa.string()),  # hash of all else that decides a score, the seed aside
            pa.field("held_out_fold", pa.int64()),  # which fold of the store its training left out; null: none
            pa.field("training_run", pa.string()),  # the training run that an evaluation's checkpoint is of
            pa.field("max_steps", pa.int64()),  # length of the training run
            pa.field("store_fingerprint", pa.string()),
            pa.field("view_fingerprint", pa.string()),
            pa.field("teacher", pa.string()),  # hub id or path of the teacher
            pa.field("top_k", pa.int64()),  # ranks that the store holds
            pa.field("training_set", pa.string()),  # hash of the training examples
            pa.field("weights", pa.string()),  # hash of all weights evaluated, base and adapter
            pa.field("tokenizer", pa.string()),  # hash
            pa.field("template", pa.string()),  # hash of the chat template
            pa.field("config", pa.string()),  # JSON, whole
            pa.field("config_hash", pa.string()),
            pa.field("versions", pa.string()),  # JSON: package -> version
            pa.field("seconds", pa.float64()),
            _required("created_at", pa.timestamp("us", tz="UTC")),
        ]
    ),
    "training_log": pa.schema(
        [
            _required("run", pa.string()),
            _required("model", pa.string()),
            pa.field("condition", pa.string()),
            pa.field("view", pa.string()),
            pa.field("seed", pa.int64()),
            _required("step", pa.int64()),
            _required("task", pa.string()),  # 'all', or one task's part
            _required("metric", pa.string()),  # loss ce kd student_ce teacher_ce learning_rate lambda …
            _required("value", pa.float64()),
        ]
    ),
}


def write_rows(results_dir: str | Path, table: str, rows: Sequence[Mapping[str, Any]], name: str) -> Path:
    """Write rows as `RESULTS/<table>/<name>.parquet`, whole or not at all.

    The file appears under its name only once its bytes are on disk; until then it is a dot file that no
    `*.parquet` glob matches. Writing the same rows under the same name again changes nothing.

    Args:
        results_dir: created where missing.
        table: a key of `SCHEMAS`.
        rows: at least one; columns that are not required may be left out (null).
        name: file name without suffix: letters, digits and `._=@+-`.

    Raises:
        StoreError: unknown table or column, a missing or wrongly typed value, a bad name, or a file of
            that name with other rows.
        OutputError: a directory that cannot be created or written, a full disk.
    """
    import pyarrow.parquet as pq  # queries go without it

    content = to_table(table, rows)
    path = file_of(results_dir, table, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--results: cannot create {path.parent}: {error.strerror}; choose another place") from None
    if path.exists():
        return _same_or_refuse(path, content)
    temporary = path.with_name(f".{name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            pq.write_table(content, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        if not _move_without_overwriting(temporary, path):
            return _same_or_refuse(path, content)
        _sync_directory(path.parent)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        reason = error.strerror or error
        raise OutputError(f"--results: cannot write {path}: {reason}; finished work is kept") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def read_rows(
    results_dir: str | Path, table: str, name: str, columns: Sequence[str] = ()
) -> list[dict[str, Any]] | None:
    """The rows that `write_rows` wrote under a name, in their order; columns that an older version lacks are None.

    Args:
        results_dir: where they are.
        table: a key of `SCHEMAS`.
        name: of the file, without suffix.
        columns: to read; none reads all.

    Returns:
        None if there is no such file.

    Raises:
        StoreError: unknown table, a bad name, or a torn file.
    """
    import pyarrow.parquet as pq  # queries go without it

    path = file_of(results_dir, table, name)
    if not path.exists():
        return None
    wanted = list(columns) or SCHEMAS[table].names
    try:
        file = pq.ParquetFile(path)
        rows = file.read([column for column in wanted if column in file.schema_arrow.names]).to_pylist()
    except (pa.ArrowException, OSError):
        raise _torn(path) from None
    return [{column: row.get(column) for column in wanted} for row in rows]


def names_of(results_dir: str | Path, table: str, prefix: str) -> list[str]:
    """The names that begin so under which `write_rows` wrote rows, sorted; StoreError for an unknown table."""
    folder = file_of(results_dir, table, "any").parent
    return sorted(path.stem for path in folder.glob("*.parquet") if path.name.startswith(prefix))


def withdraw_rows(results_dir: str | Path, table: str, name: str) -> None:
    """Delete the rows written under a name, if there are any: their writer is about to repeat the work.

    Raises:
        StoreError: unknown table or a bad name.
    """
    file_of(results_dir, table, name).unlink(missing_ok=True)


def file_of(results_dir: str | Path, table: str, name: str) -> Path:
    """Where the rows of that name are, or would be; StoreError for an unknown table or a bad name."""
    if table not in SCHEMAS:
        raise StoreError(f"table: expected one of {', '.join(SCHEMAS)}, got {table!r}")
    if not NAME_PATTERN.fullmatch(name):
        raise StoreError(f"name: expected letters, digits and ._=@+- only, got {name!r}")
    return Path(results_dir) / table / f"{name}.parquet"


def to_table(table: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as a typed pyarrow table with the schema of `table`; see `write_rows` for errors."""
    if table not in SCHEMAS:
        raise StoreError(f"table: expected one of {', '.join(SCHEMAS)}, got {table!r}")
    if not rows:
        raise StoreError(f"{table}: expected at least one row to write, got none")
    schema = SCHEMAS[table]
    known = set(schema.names)
    for row in rows:
        if unknown := row.keys() - known:
            near = difflib.get_close_matches(min(unknown), schema.names, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; columns are {', '.join(schema.names)}"
            raise StoreError(f"{table}: unknown column {min(unknown)!r}{hint}")
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if not field.nullable and any(value is None for value in values):
            raise StoreError(f"{table}.{field.name}: required, but missing in row {values.index(None)}")
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{table}.{field.name}: expected {field.type}: {reason}") from None
    version = {f"{VERSION_KEY}{SCHEMA_VERSION}": table}
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(version))


def _same_or_refuse(path: Path, content: pa.Table) -> Path:
    import pyarrow.parquet as pq  # queries go without it

    try:
        existing = pq.ParquetFile(path).read()
        # A file of an earlier version has fewer columns, and fewer that may be null: what it says must be the same.
        told = content.select([name for name in existing.column_names if name in content.column_names])
        same = existing.column_names == told.column_names and existing.cast(told.schema).equals(told)
    except (pa.ArrowException, OSError):
        raise _torn(path) from None
    if not same:
        raise StoreError(
            f"{path}: already exists with different rows, and result files are never rewritten; use a new name"
        )
    return path


def _torn(path: Path) -> StoreError:
    return StoreError(f"{path}: is torn; delete it and run the same command again")


def _move_without_overwriting(temporary: Path, path: Path) -> bool:
    """Give the file its name unless another writer was faster (then False)."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: the check is then not atomic
        if path.exists():
            return False
        temporary.rename(path)
    return True


def _sync_directory(directory: Path) -> None:
    """Make the new name durable where the system can open directories."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
