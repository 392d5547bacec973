"""The index of a store of a billion answer tokens, without values: planned, opened, and searched for what is done.

    python -m tests.benchmarks.bench_scale [--tokens 1000000000] [--mean-answer 400] [--shard-tokens 65536]

Answers have log-normal lengths. The columns of the examples and one (empty) manifest per shard are written to a
temporary directory with the functions that a build uses; token ids and logits are not.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from logitbank.storage.groups import create_flat_array
from logitbank.storage.objects import done_shards, open_objects
from logitbank.storage.teacher_store.examples import ExampleTable
from logitbank.storage.teacher_store.layout import plan_shards


@contextmanager
def timed(label: str) -> Iterator[None]:
    """Print processor and clock seconds of a block."""
    processor, clock = time.process_time(), time.perf_counter()
    yield
    print(
        f"{label:58} {time.process_time() - processor:6.1f} s of processor {time.perf_counter() - clock:6.1f} s",
        flush=True,
    )


def write_columns(group: zarr.Group, lengths: np.ndarray, starts: np.ndarray) -> None:
    """All columns that are read when a store is opened; the arrays of token ids are declared and left empty."""
    count = len(lengths)
    ids = np.frombuffer("\n".join(f"gsm8k/en/train/{i}" for i in range(count)).encode(), dtype=np.uint8)
    short = np.ones(count, dtype=np.int32)
    create_flat_array(group, "example_ids", ids, "zstd")
    create_flat_array(group, "task", np.zeros(count, dtype=np.uint16), "pcodec")
    create_flat_array(group, "language", np.zeros(count, dtype=np.uint16), "pcodec")
    create_flat_array(group, "context_start", np.arange(count, dtype=np.int64), "pcodec")
    create_flat_array(group, "context_length", short, "pcodec")
    create_flat_array(group, "context_ids", short, "zstd")
    create_flat_array(group, "answer_start", starts, "pcodec")
    create_flat_array(group, "answer_length", lengths.astype(np.int32), "pcodec")
    create_flat_array(group, "answer_ids", short[:1], "zstd")
    create_flat_array(group, "span_start", np.arange(count, dtype=np.int64), "pcodec")
    create_flat_array(group, "span_count", short, "pcodec")
    create_flat_array(group, "span_position", short, "pcodec")
    create_flat_array(group, "span_length", lengths.astype(np.int32), "pcodec")


def main() -> None:
    """Plan, write, open, list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=10**9)
    parser.add_argument("--mean-answer", type=int, default=400)
    parser.add_argument("--shard-tokens", type=int, default=65_536)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    # The mean of a log-normal is exp(mu + sigma² / 2).
    count = arguments.tokens // arguments.mean_answer
    lengths = rng.lognormal(np.log(arguments.mean_answer) - 0.125, 0.5, count).astype(np.int64) + 1
    for shard_tokens in (4096, arguments.shard_tokens):
        with timed(f"plan {lengths.sum():,} tokens, {count:,} examples, shards of {shard_tokens}"):
            plan, _ = plan_shards(lengths, max(shard_tokens, int(lengths.max())), 1)
        print(f"    {plan.shards:,} shards")
    with tempfile.TemporaryDirectory() as folder:
        root = zarr.create_group(folder)
        with timed("write the examples' columns"):
            write_columns(root.create_group("examples"), lengths, plan.answer_start)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"    {size / 1e6:,.1f} MB")
        manifests = Path(folder) / "manifest/fewshot"
        manifests.mkdir(parents=True)
        for shard in range(0, plan.shards, 2):
            (manifests / f"{shard}.json").touch()
        with timed("open: read the examples' columns"):
            group = zarr.open_group(folder, path="examples", mode="r")
            open_array: Callable[[str], Any] = group.__getitem__
            table = ExampleTable(open_array)
        with timed("find an example by its id, all ids being indexed first"):
            table.index_of(table.example_id[len(table) // 2])
        with timed(f"resume: which of {plan.shards:,} shards are done"):
            done = done_shards(open_objects(folder), "fewshot")
        print(f"    {len(table):,} examples, {len(done):,} shards done")
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:,.1f} GB")


if __name__ == "__main__":
    main()
