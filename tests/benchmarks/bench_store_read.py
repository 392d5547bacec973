"""How fast a student's batches come from a store: python -m tests.benchmarks.bench_store_read STORE.

Writes the rows of STORE again and again, under new example ids, into a store of a million answer tokens through the
real writer, and reads batches of 32 examples as training does: shuffled, through a DataLoader with two workers. In the
same run, the same batches from raw int32 and float16 arrays in memory-mapped `.npy` files and, for fewer batches, from
the same store by plain Zarr, one example at a time. Prints a Markdown table and the peak resident memory.
"""

from __future__ import annotations

import argparse
import functools
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from logitbank.registry import ENCODINGS
from logitbank.storage import StoreSpec, TeacherRows, TeacherStore, concatenate, open_builder
from logitbank.student_train.batch import MicroBatches, cache_bytes, micro_batch_loader
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.split import BatchPlan, Indices, Split
from tests.benchmarks.bench_codec import records

BATCH = 32


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--top-k", type=int, default=None, help="ranks to store (default: those of STORE)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where the large store is kept, and reused if it is there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        large = folder / "store"
        if not large.exists():
            replicate(TeacherStore.open(arguments.store), large, arguments.tokens, arguments.top_k)
        raw = folder / "raw"
        if not raw.exists():
            unpack(TeacherStore.open(str(large), cache_bytes=1), raw)
        report(large, raw, arguments.workers)


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


def report(large: Path, raw: Path, workers: int) -> None:
    """Print the table."""
    store = TeacherStore.open(str(large))
    view = store.views[0]
    steps, kept = len(store.examples) // BATCH, cache_bytes(store.info, workers)
    # Least first: the resident memory of children is that of the largest so far.
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "teacher store": (functools.partial(TeacherStore.open, str(large), cache_bytes=kept), steps),
        "raw int32 + float16 `.npy`, memory-mapped": (functools.partial(RawStore.open, str(large), raw), steps),
        "plain Zarr, one example at a time": (functools.partial(ZarrStore.open, str(large), view), 10),
    }
    size = {name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for name, path in _paths(large, raw)}
    print(
        f"{store.info.answer_tokens:,} answer tokens, {len(store.examples):,} examples, K = {store.info.top_k}, "
        f"{workers} workers; store {size['store'] / 1e6:,.0f} MB, raw {size['raw'] / 1e6:,.0f} MB"
    )
    print("| read from | answer tokens/s | first batch s | peak resident memory of a worker, MB |")
    print("|---|---:|---:|---:|")
    for name, (open_store, count) in ways.items():
        tokens, seconds, first = read(store, open_store, view, count, workers)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"| {name} | {tokens / seconds:,.0f} | {first:.2f} | {peak:,.0f} |", flush=True)


def _paths(large: Path, raw: Path) -> Iterator[tuple[str, Path]]:
    yield "store", large
    yield "raw", raw


def read(
    store: TeacherStore, open_store: Callable[[], Any], view: str, steps: int, workers: int
) -> tuple[int, float, float]:
    """Answer tokens and seconds of so many batches, and seconds to the first of them."""
    tasks = {name: np.flatnonzero(store.examples.task == number) for number, name in enumerate(store.info.tasks)}
    shard_of = store.examples.answer_start // store.info.shard_tokens
    order = ExampleOrder({name: members for name, members in tasks.items() if len(members)}, shard_of, seed=0)
    plan = BatchPlan(BATCH, BATCH, 1, 0)
    data = MicroBatches(open_store, order, plan, view=view, top_k=None)
    indices = Indices(Split(order, plan, store.examples.input_length), 0, steps)
    loader = micro_batch_loader(data, indices, num_workers=workers, pin_memory=False)
    tokens, first, started = 0, 0.0, time.perf_counter()
    for batch in loader:
        first = first or time.perf_counter() - started
        tokens += len(batch.gold_T)
    return tokens, time.perf_counter() - started, first


if __name__ == "__main__":
    main()
