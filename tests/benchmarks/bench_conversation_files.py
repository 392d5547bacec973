"""Conversations read from small and large files: speed, and memory that does not grow with the file.

    python -m tests.benchmarks.bench_conversation_files [--megabytes 50 200] [--take 5000] [--kinds jsonl json]

Synthetic tool dialogues of 2 to 14 messages are written to a temporary directory once for each size and kind of file.
A process of its own reads each: a whole training split with 5 % held out, of which `--take` conversations are kept.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import multiprocessing
import random
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from logitbank.tasks import DataSettings
from logitbank.tasks.data import load_examples

KINDS = ("jsonl", "jsonl.gz", "json", "parquet")
WORDS = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfklmnprst", "aeiou", ("n", "r", "st", ""))]


def dialogues(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows without end."""
    draw = random.Random(seed)
    for number in itertools.count():
        messages: list[dict[str, Any]] = [{"role": "system", "content": text(draw, 30)}]
        for _ in range(draw.randint(1, 4)):
            function = {
                "name": "search",
                "arguments": json.dumps({"query": text(draw, 3), "limit": draw.randint(1, 9)}),
            }
            messages += [
                {"role": "user", "content": text(draw, 20)},
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
                {"role": "tool", "content": text(draw, 60)},
                {"role": "assistant", "content": text(draw, 40)},
            ]
        yield {"id": f"dialogue-{number}", "messages": messages}


def text(draw: random.Random, length: int) -> str:
    """About so many words."""
    return " ".join(draw.choices(WORDS, k=draw.randint(length // 2, length * 3 // 2)))


def write(path: Path, megabytes: int) -> None:
    """A file of so many megabytes of JSON, in the kind that its suffix names."""
    rows = up_to(megabytes * 10**6, dialogues())
    if path.suffix == ".parquet":
        schema = pa.Table.from_pylist(list(itertools.islice(dialogues(), 100))).schema
        with pq.ParquetWriter(path, schema) as writer:
            while batch := [json.loads(line) for line in itertools.islice(rows, 2000)]:
                writer.write_table(pa.Table.from_pylist(batch, schema))
        return
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        if path.suffix == ".json":
            file.write("[" + next(rows))
            file.writelines(f",\n{line}" for line in rows)
            file.write("]")
        else:
            file.writelines(f"{line}\n" for line in rows)


def up_to(size: int, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Rows as JSON until they make so many bytes."""
    for row in rows:
        line = json.dumps(row)
        size -= len(line)
        yield line
        if size <= 0:
            return


def read(path: str, take: int) -> tuple[int, float, float]:
    """Conversations kept, processor seconds, and the megabytes by which the process grew at its largest."""
    settings = DataSettings(files={"chat": {"train": path}})
    load_examples("chat", "train", "und", DataSettings(files={"chat": {"train": f"{path}.little"}}))  # imports
    before, started = peak(), time.process_time()
    found = load_examples("chat", "train", "und", settings, limit=take)
    return len(found), time.process_time() - started, peak() - before


def peak() -> float:
    """The most this process has held, in megabytes; `getrusage` would count what its parent held at its start."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3  # type: ignore[index]


def main() -> None:
    """Write and read every kind in every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--take", type=int, default=5000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    print("| file | MB of JSON | MB/s | peak MB above a small file |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, megabytes in itertools.product(arguments.kinds, arguments.megabytes):
            path = Path(folder) / f"rows.{kind}"
            write(path, megabytes)
            little = Path(f"{path}.little")
            little.write_text("".join(f"{line}\n" for line in up_to(10**5, dialogues(seed=1))))
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                kept, seconds, grown = pool.submit(read, str(path), arguments.take).result()
            assert kept == arguments.take
            print(f"| `.{kind}` | {megabytes} | {megabytes / seconds:.1f} | {grown:.0f} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
