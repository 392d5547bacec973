"""The scalars of a teacher store as Arrow tables, for SQL: `cache_tokens` and `cache_examples`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from storage.reader import TeacherStore

CACHE_TOKENS = pa.schema(
    [
        ("store", pa.string()),
        ("model", pa.string()),
        ("view", pa.string()),
        ("task", pa.string()),
        ("language", pa.string()),
        ("example_id", pa.string()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("entropy", pa.float32()),
        ("logsumexp", pa.float32()),
        ("gold_logit", pa.float32()),
        ("gold_rank", pa.int32()),
        ("gold_nll", pa.float32()),
        ("top_k_mass", pa.float32()),
    ]
)

CACHE_EXAMPLES = pa.schema(
    [
        ("store", pa.string()),
        ("model", pa.string()),
        ("task", pa.string()),
        ("language", pa.string()),
        ("example_id", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
    ]
)


def cache_tokens(store: TeacherStore) -> pa.RecordBatchReader:
    """One row per view and answer token, shard by shard, so that memory stays bounded.

    Columns: entropy, logsumexp, gold_logit as stored (nats); gold_nll = logsumexp − gold_logit, the
    teacher's cross-entropy on the token; top_k_mass, the probability of the stored ranks together.
    Unfinished views give the shards they have.
    """
    return pa.RecordBatchReader.from_batches(CACHE_TOKENS, _token_batches(store))


def cache_examples(store: TeacherStore) -> pa.Table:
    """One row per training example."""
    table = store.examples
    tasks, languages = np.array(store.info.tasks), np.array(store.info.languages)
    count = len(table)
    return pa.table(
        {
            "store": [store.url] * count,
            "model": [store.info.model] * count,
            "task": tasks[table.task].tolist(),
            "language": languages[table.language].tolist(),
            "example_id": table.example_id,
            "prompt_tokens": table.prompt_length,
            "answer_tokens": table.answer_length,
        },
        schema=CACHE_EXAMPLES,
    )


def _token_batches(store: TeacherStore) -> Iterator[pa.RecordBatch]:
    tasks, languages = np.array(store.info.tasks), np.array(store.info.languages)
    names = np.array(store.examples.example_id, dtype=object)
    for view in store.views:
        missing = set(store.missing_shards(view))
        for shard in range(store.info.shards):
            if shard in missing:
                continue
            rows = store.read_shard(view, shard)
            examples = np.asarray(store.plan.examples_of(shard))
            lengths = store.examples.answer_length[examples]
            owner = np.repeat(examples, lengths)
            starts = np.cumsum(lengths) - lengths
            mass = np.exp(rows.logits - rows.logsumexp[:, None]).sum(axis=1, dtype=np.float64)
            yield pa.record_batch(
                [
                    pa.repeat(store.url, len(rows)),
                    pa.repeat(store.info.model, len(rows)),
                    pa.repeat(view, len(rows)),
                    tasks[store.examples.task[owner]].tolist(),
                    languages[store.examples.language[owner]].tolist(),
                    names[owner].tolist(),
                    (np.arange(len(rows)) - np.repeat(starts, lengths)).astype(np.int32),
                    np.concatenate([store.examples.answer_ids(int(example)) for example in examples]),
                    rows.entropy,
                    rows.logsumexp,
                    rows.gold_logit,
                    rows.gold_rank,
                    rows.logsumexp - rows.gold_logit,
                    np.minimum(mass, 1.0).astype(np.float32),
                ],
                schema=CACHE_TOKENS,
            )
