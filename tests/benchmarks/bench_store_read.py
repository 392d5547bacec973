"""How fast a student's batches come from a store: python -m tests.benchmarks.bench_store_read STORE.

Writes the rows of STORE again and again, under new example ids, into a store of a million answer tokens through the
real writer, and reads batches of 32 examples as training does: shuffled, with two threads. In the same run, the same
batches from raw int32 and float16 arrays in memory-mapped `.npy` files, through a DataLoader with two worker processes
and with two threads, and, for fewer batches, from the same store by plain Zarr, one example at a time. Every way is
measured in a process of its own, in turns, `--rounds` times. Prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from logitbank.registry import ENCODINGS
from logitbank.storage import StoreSpec, TeacherRows, TeacherStore, concatenate, open_builder
from logitbank.student_train.batch import Batch, MicroBatches, micro_batch_loader
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.split import BatchPlan, Indices, Split
from tests.benchmarks.bench_codec import records

BATCH = 32


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="a store, or with --one the folder of a large one")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--top-k", type=int, default=None, help="ranks to store (default: those of STORE)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured")
    parser.add_argument("--work", type=Path, help="where the large store is kept, and reused if it is there")
    parser.add_argument("--one", choices=WAYS, help="measure one way in this process and print it as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.one:
        print(json.dumps(measure(Path(arguments.store), arguments.one, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        large = folder / "store"
        if not large.exists():
            replicate(TeacherStore.open(arguments.store), large, arguments.tokens, arguments.top_k)
        raw = folder / "raw"
        if not raw.exists():
            unpack(TeacherStore.open(str(large), cache_bytes=1), raw)
        report(folder, arguments.workers, arguments.rounds)


def replicate(source: TeacherStore, target: Path, tokens: int, top_k: int | None) -> None:
    """Write a compact store of about so many answer tokens."""
    view, top_k = source.views[0], top_k or source.info.top_k
    fields = {name: getattr(source.info, name) for name in StoreSpec.__dataclass_fields__}
    spec = StoreSpec(**{**fields, "encoding": "compact", "top_k": top_k, "identity": {}})
    originals = records(source, "examples")
    copies = -(-tokens // source.info.answer_tokens)
    examples = [replace(e, example_id=f"{e.example_id}/{copy}") for copy in range(copies) for e in originals]
    vocabulary = source.vocabulary
    with open_builder(str(target), spec, examples, [], vocabulary=lambda: vocabulary) as builder:
        builder.add_view(view, {}, {})
        for shard in builder.missing_shards(view):
            members = [i % len(originals) for i in builder.plan.examples_of(shard)]
            builder.write_shard(view, shard, source.read(members, view, top_k))


def unpack(store: TeacherStore, raw: Path) -> None:
    """The same rows as raw arrays on the answer-token axis."""
    raw.mkdir()
    rows, k = store.info.shards * store.info.shard_tokens, store.info.top_k
    create = functools.partial(np.lib.format.open_memmap, mode="w+")
    ids = create(raw / "token_ids.npy", dtype=np.int32, shape=(rows, k))
    logits = create(raw / "logits.npy", dtype=np.float16, shape=(rows, k))
    scalars = {name: create(raw / f"{name}.npy", dtype=np.float32, shape=(rows,)) for name in RawStore.SCALARS}
    for shard in range(store.info.shards):
        start = shard * store.info.shard_tokens
        part = store.read_shard(store.views[0], shard)
        ids[start : start + len(part)], logits[start : start + len(part)] = part.token_ids, part.logits
        for name, values in scalars.items():
            values[start : start + len(part)] = getattr(part, name)


@dataclass
class RawStore:
    """What a user would write without a format: memory-mapped arrays, one slice for each example."""

    SCALARS = ("logsumexp", "entropy", "gold_logit", "gold_rank", "log_tail")

    store: TeacherStore
    arrays: dict[str, Any]

    @classmethod
    def open(cls, store: str, raw: Path) -> RawStore:
        """Open the arrays, and the store for its examples."""
        names = ("token_ids", "logits", *cls.SCALARS)
        return cls(TeacherStore.open(store), {name: np.load(raw / f"{name}.npy", mmap_mode="r") for name in names})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def read(self, examples: Sequence[int], view: str, top_k: int | None = None) -> TeacherRows:
        """See `TeacherStore.read`."""
        plan = self.store.plan
        parts: dict[str, list[Any]] = {name: [] for name in self.arrays}
        for example in examples:
            start = int(plan.answer_start[example])
            for name, array in self.arrays.items():
                parts[name].append(array[start : start + int(plan.answer_length[example]), ...])
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        types = {"logits": np.float32, "gold_rank": np.int32}
        return TeacherRows(**{n: v.astype(types.get(n, v.dtype), copy=False) for n, v in joined.items()})


@dataclass
class ZarrStore:
    """The same store by plain Zarr: every array sliced for every example."""

    store: TeacherStore
    group: Any

    @classmethod
    def open(cls, store: str, view: str) -> ZarrStore:
        """Open both."""
        return cls(TeacherStore.open(store), zarr.open_group(f"{store}/teachers/{view}", mode="r"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def read(self, examples: Sequence[int], view: str, top_k: int | None = None) -> TeacherRows:
        """See `TeacherStore.read`."""
        info, plan, parts = self.store.info, self.store.plan, []
        encoding = ENCODINGS[info.encoding]
        names = [spec.name for spec in encoding.arrays(info.top_k)]
        for example in examples:
            start = int(plan.answer_start[example])
            rows = slice(start, start + int(plan.answer_length[example]))
            arrays = {name: np.asarray(self.group[name][rows]) for name in names}
            parts.append(encoding.decode(arrays, info.top_k, self.store.vocabulary))
        return concatenate(parts)


@dataclass
class Crossing(Dataset[Any]):
    """Batches that cross processes as one tensor: each of them costs a file, a mapping and a connection."""

    data: MicroBatches

    def __getitem__(self, index: tuple[int, int]) -> tuple[torch.Tensor, list[Any], int]:
        batch = self.data[index]
        assert batch.teacher is not None
        tensors = [value for part in (batch, batch.teacher) for value in vars(part).values() if torch.is_tensor(value)]
        size = sum(tensor.nbytes for tensor in tensors)
        packed = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
        start = 0
        for tensor in tensors:
            packed[start : start + tensor.nbytes].copy_(tensor.contiguous().view(torch.uint8).flatten())
            start += tensor.nbytes
        return packed, [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors], len(batch.gold_T)


WAYS = {
    "store": "teacher store, two threads",
    "raw-processes": "raw int32 + float16 `.npy`, memory-mapped, a DataLoader with two processes",
    "raw-threads": "raw int32 + float16 `.npy`, memory-mapped, two threads",
    "zarr": "plain Zarr, one example at a time, two threads",
}


def report(folder: Path, workers: int, rounds: int) -> None:
    """Print the table."""
    store = TeacherStore.open(str(folder / "store"))
    size = {n: sum(f.stat().st_size for f in (folder / n).rglob("*") if f.is_file()) for n in ("store", "raw")}
    print(
        f"{store.info.answer_tokens:,} answer tokens, {len(store.examples):,} examples, K = {store.info.top_k}, "
        f"{workers} threads or processes; store {size['store'] / 1e6:,.0f} MB, raw {size['raw'] / 1e6:,.0f} MB"
    )
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            if way == "zarr" and number:
                continue
            command = [sys.executable, "-m", __spec__.name, str(folder), "--one", way, "--workers", str(workers)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    print("| read from | answer tokens/s | processor µs/token | first batch s | peak resident memory, MB |")
    print("|---|---:|---:|---:|---:|")
    for way, title in WAYS.items():
        median = {name: statistics.median(run[name] for run in found[way]) for name in found[way][0]}
        print(
            f"| {title} | {median['rate']:,.0f} | {median['processor']:.1f} | {median['first']:.2f} | "
            f"{median['memory']:,.0f} |"
        )
    for way in ("raw-processes", "raw-threads"):
        pairs = list(zip(found["store"], found[way], strict=True))
        wall = statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in pairs)
        processor = statistics.median(theirs["processor"] / ours["processor"] for ours, theirs in pairs)
        print(f"store / {way}: {wall:.2f} of the rate, {processor:.2f} by processor time")


def measure(folder: Path, way: str, workers: int) -> dict[str, float]:
    """One pass over the store: tokens a second, processor time of all processes, the first batch, memory."""
    url, raw = str(folder / "store"), folder / "raw"
    store = TeacherStore.open(url)
    view = store.views[0]
    tasks = {name: np.flatnonzero(store.examples.task == number) for number, name in enumerate(store.info.tasks)}
    shard_of = store.examples.answer_start // store.info.shard_tokens
    order = ExampleOrder({name: members for name, members in tasks.items() if len(members)}, shard_of, seed=0)
    plan = BatchPlan(BATCH, BATCH, 1, 0)
    opened: dict[str, Callable[[], Any]] = {
        "store": lambda: store,
        "raw-processes": functools.partial(RawStore.open, url, raw),
        "raw-threads": functools.partial(RawStore.open, url, raw),
        "zarr": functools.partial(ZarrStore.open, url, view),
    }
    data = MicroBatches(opened[way], order, plan, view=view, top_k=None)
    steps = 10 if way == "zarr" else len(store.examples) // BATCH
    indices = Indices(Split(order, plan, store.examples.input_length), 0, steps)
    tokens, first, started, processor = 0, 0.0, time.perf_counter(), sum(os.times()[:4])
    for count in _counts(way, data, indices, workers):
        first = first or time.perf_counter() - started
        tokens += count
    seconds, processor = time.perf_counter() - started, sum(os.times()[:4]) - processor
    who = resource.RUSAGE_CHILDREN if way == "raw-processes" else resource.RUSAGE_SELF
    memory = resource.getrusage(who).ru_maxrss / 1024
    return {"rate": tokens / seconds, "processor": 1e6 * processor / tokens, "first": first, "memory": memory}


def _counts(way: str, data: MicroBatches, indices: Indices, workers: int) -> Iterator[int]:
    """Answer tokens of each batch, once it is here."""
    if way == "store":
        yield from (len(batch.gold_T) for batch in micro_batch_loader(data, indices, num_workers=workers))
    elif way == "raw-processes":
        sampler: Any = indices
        loader = DataLoader(Crossing(data), None, sampler=sampler, num_workers=workers, prefetch_factor=4)
        yield from (count for *_, count in loader)
    else:
        local = threading.local()  # what a store keeps of its examples is not for several threads

        def read(index: tuple[int, int]) -> Batch:
            local.data = getattr(local, "data", None) or copy.copy(data)
            batch: Batch = local.data[index]
            return batch

        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[Future[Batch]] = deque()
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) > 4 * workers:
                    yield len(waiting.popleft().result().gold_T)
            yield from (len(future.result().gold_T) for future in waiting)


if __name__ == "__main__":
    main()
