"""What each encoding costs and keeps: python -m tests.benchmarks.bench_codec STORE (an exact one).

Rebuilds the whole store, everything included, once per encoding and K, and prints a Markdown table: bytes of all
objects per answer token and view, encode and decode time, largest error of a value, mean KL(teacher ‖ reconstruction)
with the mass outside the top K as one more outcome: as the store has it, and as what the stored values leave of 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from logitbank.registry import ENCODINGS
from logitbank.storage import ExampleRecord, StoreSpec, TeacherRows, TeacherStore, Vocabulary, open_builder

PILOT = 2048  # answer tokens, as in teacher_cache.build


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--top-k", type=int, nargs="+", default=[256, 128, 64])
    parser.add_argument("--encoding", nargs="+", default=sorted(ENCODINGS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    store = TeacherStore.open(arguments.store, cache_bytes=1)
    print(
        "| encoding | K | bytes/token | encode µs/token | decode µs/token "
        "| largest error | KL, stored tail | KL, tail 1 − Σ |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for encoding in arguments.encoding:
        for top_k in arguments.top_k:
            print(measure(store, encoding, top_k), flush=True)


def measure(store: TeacherStore, encoding: str, top_k: int) -> str:
    """One row of the table."""
    view = store.views[0]
    spec = StoreSpec(
        **{
            name: getattr(store.info, name)
            for name in StoreSpec.__dataclass_fields__
            if name not in ("top_k", "encoding", "identity")
        },
        top_k=top_k,
        encoding=encoding,
        identity={},
    )
    with tempfile.TemporaryDirectory() as folder:
        encode = decode = 0.0
        error, divergence = 0.0, np.zeros(2)
        with open_builder(
            folder,
            spec,
            records(store, "examples"),
            records(store, "validation"),
            vocabulary=lambda: learn(store, view, top_k),
        ) as builder:
            builder.add_view(view, {}, {})
            for shard in builder.missing_shards(view):
                rows = store.read_shard(view, shard, top_k)
                started = time.process_time()
                builder.write_shard(view, shard, rows)
                encode += time.process_time() - started
        again = TeacherStore.open(folder, cache_bytes=1)
        for shard in range(again.info.shards):
            started = time.process_time()
            rows = again.read_shard(view, shard)
            decode += time.process_time() - started
            truth = store.read_shard(view, shard, top_k)
            error = max(error, float(np.abs(rows.logits - truth.logits).max()))
            divergence += kl(truth, rows)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    tokens = store.info.answer_tokens
    return (
        f"| {encoding} | {top_k} | {size / tokens:.1f} | {1e6 * encode / tokens:.1f} | {1e6 * decode / tokens:.1f} "
        f"| {error:.4f} | {divergence[0] / tokens:.1e} | {divergence[1] / tokens:.1e} |"
    )


def learn(store: TeacherStore, view: str, top_k: int) -> Vocabulary:
    """What the builder learns from its pilot: the first answer tokens of the store."""
    shards = min(store.info.shards, -(-PILOT // store.info.shard_tokens))
    parts = [store.read_shard(view, shard, top_k).token_ids for shard in range(shards)]
    return Vocabulary.learn(np.concatenate(parts)[:PILOT], store.info.tokenizer_size)


def records(store: TeacherStore, name: str) -> list[ExampleRecord]:
    """The examples as they were given to the builder."""
    table = getattr(store, name)
    return [
        ExampleRecord(
            table.example_id[i],
            store.info.tasks[table.task[i]],
            store.info.languages[table.language[i]],
            table.sequence(i),
        )
        for i in range(len(table))
    ]


def kl(truth: TeacherRows, rows: TeacherRows) -> np.ndarray:
    """Summed KL(truth ‖ rows) in float64 over the K tokens and one outcome for all others, (2,): stored tail, 1 − Σ.

    Tokens whose values tie may be ordered differently, so both are put in the order of their ids.
    """
    true_order, order = np.argsort(truth.token_ids, axis=1), np.argsort(rows.token_ids, axis=1)
    log_p = np.take_along_axis(truth.logits.astype(np.float64) - truth.logsumexp[:, None], true_order, axis=1)
    log_q = np.take_along_axis(rows.logits.astype(np.float64) - rows.logsumexp[:, None], order, axis=1)
    p, q = np.exp(log_p).sum(axis=1), np.exp(log_q).sum(axis=1)
    tail = np.maximum(1 - p, 1e-12)
    stored = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    totals = [
        (stored + tail * np.log(tail / other) + np.log(q + other)).sum()
        for other in (np.exp(rows.log_tail.astype(np.float64)), np.maximum(1 - q, 1e-12))
    ]
    return np.array(totals)


if __name__ == "__main__":
    main()
