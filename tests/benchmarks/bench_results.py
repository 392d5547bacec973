"""1,000,000 prediction rows and 5,000 runs: every table and every query within a second, in a new process too.

    python -m tests.benchmarks.bench_results [--rows 1000000] [--runs 5000] [--memory 1GB]

Rows are generated into a temporary directory, one file per run and table, as evaluations leave them. With a limit of
memory, all tables are made under it twice, in new processes to which the system gives no more (RLIMIT_DATA).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from logitbank.evaluation.query_command import main as query_results
from logitbank.storage.results import parse_memory
from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS, VERSION_KEY, write_rows

LANGUAGES = ("en", "hi", "es", "de", "fr", "zh")
CONDITIONS = ("finetuned", "distilled", "control")
QUERIES = (
    "SELECT condition, task, language, avg(score) AS score FROM predictions GROUP BY ALL ORDER BY ALL",
    "SELECT * FROM averages",
    "SELECT gap, count(*) FROM gaps GROUP BY gap",
    "SELECT count(*) FROM runs WHERE kind = 'evaluation'",
)


def generate(results: Path, runs: int, rows: int) -> None:
    """Runs over 4 models, 3 conditions, 6 languages and as many seeds as it takes."""
    per_run = rows // runs
    rng = np.random.default_rng(0)
    created = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for number in range(runs):
        rest, model = divmod(number, 4)
        rest, condition = divmod(rest, len(CONDITIONS))
        seed, language = rest, LANGUAGES[rest % len(LANGUAGES)]
        name = f"run-{number:05d}"
        identity = {"run": name, "model": f"model-{model}", "condition": CONDITIONS[condition], "step": 1000}
        identity |= {"checkpoint": "out/final", "seed": seed}
        right = rng.random(per_run) < 0.5 + 0.05 * condition
        where = {"task": "nli", "language": language, "split": "test", "method": "generate"}
        metric = {**identity, **where, "examples": per_run}
        metrics = [
            {**metric, "metric": "accuracy", "value": float(right.mean()), "is_primary": True},
            {**metric, "metric": "parse_failure", "value": 0.0, "is_primary": False},
        ]
        run = {**identity, "kind": "evaluation", "setup": "s", "config": "{}", "created_at": created}
        _write_predictions(results, name, {**identity, **where}, right)
        write_rows(results, "metrics", metrics, name)
        write_rows(results, "runs", [run], name)


def _write_predictions(results: Path, name: str, identity: dict[str, Any], right: np.ndarray) -> None:
    """As `write_rows` does, column by column."""
    language, places = identity["language"], range(len(right))
    same = {**identity, "prompt_hash": "0123456789abcdef", "demonstrations": 0}
    same |= {"parsed": '"entailment"', "gold": '"entailment"'}
    columns: dict[str, list[Any]] = {column: [value] * len(right) for column, value in same.items()}
    columns["example_id"] = [f"nli/{language}/test/{place}" for place in places]
    columns["question"] = [f"Premise: sentence {place} of the test set.\nHypothesis: another one." for place in places]
    columns["output"] = ["entailment" if correct else "neutral" for correct in right]
    columns["score"] = right.astype(float).tolist()
    columns["statistics"] = [[("correct", float(correct)), ("parse_failure", 0.0)] for correct in right]
    schema = SCHEMAS["predictions"]
    arrays = [pa.array(columns.get(field.name, [None] * len(right)), field.type) for field in schema]
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({f"{VERSION_KEY}{SCHEMA_VERSION}": "predictions"}))
    path = results / "predictions" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def timed(label: str, arguments: list[str]) -> float:
    """Seconds of a second run in this process, printed beside the first."""
    seconds = []
    for _ in range(2):
        started, busy = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            query_results(arguments)
        seconds.append(time.perf_counter() - started)
    busy = time.process_time() - busy
    print(f"{label:50} first {seconds[0]:6.2f} s   warm {seconds[1]:6.2f} s, {busy:.2f} s of CPU", flush=True)
    return seconds[1]


def alone(label: str, command: list[str], times: int = 5) -> float:
    """Seconds of a command as a process of its own, imports included; the least of several times."""
    seconds, busy = [], []
    for _ in range(times):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
    print(f"{label:50} {min(seconds):6.2f} s, {min(busy):.2f} s of CPU", flush=True)
    return min(seconds)


def limited(results: Path, memory: str) -> None:
    """All tables under a limit, first with files that no query has read."""
    shutil.rmtree(results / ".cache", ignore_errors=True)
    size = parse_memory(memory)
    command = [sys.executable, "-m", "logitbank", "query-results", "--results", str(results), "--memory", memory]
    for label in ("first", "again"):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, "tables"],
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size)),
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"tables within {memory}, {label}: {time.perf_counter() - started:.1f} s, {busy:.1f} s of CPU, "
            f"{used.ru_maxrss / 1024:.0f} MiB at most"
        )


def main() -> None:
    """Generate, time, and exit with 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5_000)
    parser.add_argument("--memory", help="print the tables within so much, and nothing else")
    parser.add_argument("--keep", type=Path, help="directory for the rows; filled where it is empty, and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = arguments.keep or Path(temporary)
        if not (results / "runs").exists():
            started = time.perf_counter()
            generate(results, arguments.runs, arguments.rows)
            print(f"generated {arguments.rows} rows in {time.perf_counter() - started:.0f} s")
        base = ["--results", str(results)]
        if arguments.memory is not None:
            limited(results, arguments.memory)
            return
        slow = [timed(f"sql {query[:40]}…", [*base, "sql", query, "--format", "csv"]) for query in QUERIES]
        tables = timed("tables", [*base, "tables"])
        command = [sys.executable, "-m", "logitbank", "query-results", *base]
        new = [
            alone(f"{label}, in a new process", [*command, *arguments])
            for label, arguments in (("sql", ["sql", QUERIES[0], "--format", "csv"]), ("tables", ["tables"]))
        ]
        shutil.rmtree(results / ".cache")
        first = alone("tables, in a new process, of files that no query has read", [*command, "tables"], times=1)
    sys.exit(1 if max(*slow, tables, *new) > 1 or first > 3 else 0)


if __name__ == "__main__":
    main()
