"""A teacher store as rows: one for each answer token and view, one for each example and view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from logitbank.storage.teacher_store import TeacherStore

TOP = 5  # ranks that `cache_tokens` shows

TOKEN_SCHEMA = pa.schema(
    [
        ("store", pa.string()),
        ("fingerprint", pa.string()),
        ("view", pa.string()),
        ("example_id", pa.string()),
        ("sequence", pa.int64()),  # in a view with sequences of its own: which of them; else null
        ("task", pa.string()),
        ("language", pa.string()),
        ("position", pa.int64()),  # 0: the first answer token
        ("token_id", pa.int64()),  # the gold answer token
        ("logprob", pa.float64()),  # log p(gold token), nats
        ("gold_logit", pa.float64()),
        ("gold_rank", pa.int64()),  # 0: the teacher's first choice
        ("entropy", pa.float64()),  # nats
        ("logsumexp", pa.float64()),
        ("top_k_mass", pa.float64()),  # probability of all stored ranks together
        ("top_ids", pa.list_(pa.int64())),
        ("top_logprobs", pa.list_(pa.float64())),
    ]
)
EXAMPLES_SQL = """
    SELECT store, fingerprint, view, example_id, sequence, task, language, count(*) AS answer_tokens,
           sum(logprob) AS logprob, -avg(logprob) AS cross_entropy, avg(entropy) AS entropy,
           bool_and(gold_rank = 0) AS known
    FROM cache_tokens GROUP BY store, fingerprint, view, example_id, sequence, task, language
"""


def token_rows(urls: Sequence[str]) -> pa.Table:
    """Every answer token under every view of the stores, with the schema `TOKEN_SCHEMA`.

    Raises:
        StoreError: no store, or a view that is still being written.
    """
    from logitbank.storage.teacher_store import TeacherStore  # Zarr takes longer to import than most queries to answer

    batches = []
    for url in urls:
        store = TeacherStore.open(url)
        for view in store.views:
            store.require_view(view)
        batches += list(token_batches(store))
    return pa.Table.from_batches(batches, schema=TOKEN_SCHEMA)


def token_batches(store: TeacherStore) -> Iterator[pa.RecordBatch]:
    """The same for one store, shard by shard, so that memory stays bounded; unwritten shards are left out."""
    tasks, languages = np.array(store.info.tasks), np.array(store.info.languages)
    for view in store.views:
        missing = set(store.missing_shards(view))
        for shard in set(range(store.plan_of(view).shards)) - missing:
            yield _shard_batch(store, view, shard, tasks, languages)


def _shard_batch(
    store: TeacherStore, view: str, shard: int, tasks: NDArray[Any], languages: NDArray[Any]
) -> pa.RecordBatch:
    rows, table = store.read_shard(view, shard), store.table(view)
    chosen = np.asarray(store.plan_of(view).examples_of(shard))
    ids = np.array([table.example_id[index] for index in chosen], dtype=object)
    lengths = table.answer_length[chosen]
    repeated = np.repeat(chosen, lengths)
    logsumexp = rows.logsumexp.astype(np.float64)
    logprobs = rows.logits - logsumexp[:, None]
    columns = {
        "store": [store.url] * len(rows),
        "fingerprint": [store.info.fingerprint] * len(rows),
        "view": [view] * len(rows),
        "example_id": np.repeat(ids, lengths).tolist(),
        "sequence": repeated.tolist() if store.has_own_sequences(view) else [None] * len(rows),
        "task": tasks[table.task[repeated]].tolist(),
        "language": languages[table.language[repeated]].tolist(),
        "position": np.concatenate([np.arange(length) for length in lengths]),
        "token_id": np.concatenate([table.answer_ids(int(index)) for index in chosen]).astype(np.int64),
        "logprob": rows.gold_logit - logsumexp,
        "gold_logit": rows.gold_logit.astype(np.float64),
        "gold_rank": rows.gold_rank.astype(np.int64),
        "entropy": rows.entropy.astype(np.float64),
        "logsumexp": logsumexp,
        "top_k_mass": -np.expm1(rows.log_tail.astype(np.float64)),
        "top_ids": rows.token_ids[:, :TOP].tolist(),
        "top_logprobs": logprobs[:, :TOP].tolist(),
    }
    return pa.RecordBatch.from_pydict(columns, schema=TOKEN_SCHEMA)
