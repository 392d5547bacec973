"""What caches of other toolkits cost to take over and to give away: python -m tests.benchmarks.bench_exchange STORE.

Exports a view with 64 ranks in each layout, then imports it. Prints processor seconds of the whole command, answer
tokens per second of it, and bytes per answer token of the Parquet files and of the store that comes of them. The plain
rows are then repeated in one file, and the import of that file shows whether memory grows with the data. Each command
has a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from logitbank.storage import TeacherStore

LAYOUTS = {"plain": (), "axolotl": ("--format", "axolotl", "--normalized", "vocabulary")}


class Run(NamedTuple):
    """What a command took."""

    seconds: float
    peak_gib: float


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="a store of rows of a real model")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--copies", type=int, default=8, help="how often the plain rows stand in the large file")
    arguments = parser.parse_args()
    store = TeacherStore.open(arguments.store)
    tokens, view = store.info.answer_tokens, store.views[0]
    print(
        f"{len(store.examples):,} examples, {int(store.examples.input_length.sum()):,} tokens, {tokens:,} answer tokens"
    )
    print("\n| rows | command | s of processor | tokens/s | peak GiB | bytes/token |\n|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for layout, options in LAYOUTS.items():
            rows = folder / layout
            ranks = ("--top-k", str(arguments.top_k))
            run = command("export", arguments.store, "--view", view, "--output", str(rows), *ranks, *options)
            show(layout, "export", run, tokens, size(rows))
            run = take(store, f"{rows}/*.parquet", folder / f"{layout}-store")
            show(layout, "import", run, tokens, size(folder / f"{layout}-store"))
        large = folder / "large.parquet"
        repeat(folder / "plain", large, arguments.copies)
        run = take(store, str(large), folder / "large-store")
        show(f"plain, {arguments.copies} times", "import", run, tokens * arguments.copies, size(folder / "large-store"))


def take(store: TeacherStore, files: str, target: Path) -> Run:
    """Import rows for the same base model."""
    place = ("--store", str(target), "--view", "theirs", "--model", store.info.model, "--teacher", "benchmark")
    return command("import", files, *place)


def command(*arguments: str) -> Run:
    """Run a command of logitbank to its end."""
    process = subprocess.Popen([sys.executable, "-m", "logitbank", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{arguments[0]} ended with {status}")
    return Run(used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)


def repeat(source: Path, target: Path, copies: int) -> None:
    """All rows again and again, under new ids, as one file."""
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(source.glob("*.parquet"))])
    with pq.ParquetWriter(target, rows.schema, compression="zstd") as file:
        for copy in range(copies):
            ids = pa.array([f"{name}/{copy}" for name in rows["id"].to_pylist()], pa.string())
            file.write_table(rows.set_column(rows.schema.get_field_index("id"), "id", ids), row_group_size=10_000)


def size(folder: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show(rows: str, what: str, run: Run, tokens: int, held: int) -> None:
    """A line of the table."""
    speed = f"{tokens / run.seconds:,.0f}"
    print(f"| {rows} | {what} | {run.seconds:.1f} | {speed} | {run.peak_gib:.2f} | {held / tokens:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
