"""A teacher store as rows: one for each answer token and view, one for each example and view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from storage.reader import TeacherStore

TOP = 5  # ranks that `cache_tokens` shows
BATCH = 512  # examples decoded at once

TOKEN_SCHEMA = pa.schema(
    [
        ("store", pa.string()),
        ("fingerprint", pa.string()),
        ("view", pa.string()),
        ("example_id", pa.string()),
        ("task", pa.string()),
        ("language", pa.string()),
        ("position", pa.int64()),  # 0: the first answer token
        ("token_id", pa.int64()),  # the gold answer token
        ("logprob", pa.float64()),  # log p(gold token), nats
        ("gold_logit", pa.float64()),
        ("gold_rank", pa.int64()),  # 0: the teacher's first choice
        ("entropy", pa.float64()),  # nats
        ("logsumexp", pa.float64()),
        ("top_ids", pa.list_(pa.int64())),
        ("top_logprobs", pa.list_(pa.float64())),
    ]
)
EXAMPLES_SQL = """
    SELECT store, fingerprint, view, example_id, task, language, count(*) AS answer_tokens,
           sum(logprob) AS logprob, -avg(logprob) AS cross_entropy, avg(entropy) AS entropy,
           bool_and(gold_rank = 0) AS known
    FROM cache_tokens GROUP BY store, fingerprint, view, example_id, task, language
"""


def token_rows(urls: Sequence[str]) -> pa.Table:
    """Every answer token under every view of the stores, with the schema `TOKEN_SCHEMA`.

    Raises:
        StoreError: no store, or a view that is still being written.
    """
    tables = [pa.table(columns, schema=TOKEN_SCHEMA) for url in urls for columns in _batches(url)]
    return pa.concat_tables(tables) if tables else TOKEN_SCHEMA.empty_table()


def _batches(url: str) -> Iterator[dict[str, Any]]:
    store = TeacherStore.open(url)
    table, top = store.examples, min(TOP, store.info.top_k)
    tasks, languages = np.array(store.info.tasks), np.array(store.info.languages)
    ids, lengths = np.asarray(table.example_id), np.asarray(table.answer_length)
    for view in store.views:
        store.require_view(view)
        for start in range(0, len(table), BATCH):
            chosen = np.arange(start, min(start + BATCH, len(table)))
            rows = store.read(chosen, view, top_k=top)
            repeated = np.repeat(chosen, lengths[chosen])
            logsumexp = rows.logsumexp.astype(np.float64)
            yield {
                "store": [url] * len(rows),
                "fingerprint": [store.info.fingerprint] * len(rows),
                "view": [view] * len(rows),
                "example_id": ids[repeated].tolist(),
                "task": tasks[np.asarray(table.task)[repeated]].tolist(),
                "language": languages[np.asarray(table.language)[repeated]].tolist(),
                "position": np.concatenate([np.arange(n) for n in lengths[chosen]]),
                "token_id": np.concatenate([table.answer_ids(int(index)) for index in chosen]).astype(np.int64),
                "logprob": rows.gold_logit - logsumexp,
                "gold_logit": rows.gold_logit.astype(np.float64),
                "gold_rank": rows.gold_rank.astype(np.int64),
                "entropy": rows.entropy.astype(np.float64),
                "logsumexp": logsumexp,
                "top_ids": rows.token_ids.tolist(),
                "top_logprobs": (rows.logits - logsumexp[:, None]).tolist(),
            }
