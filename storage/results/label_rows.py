"""A label store as rows: one for each example and view that a teacher scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from logitbank.preference import CLASSES

if TYPE_CHECKING:
    from logitbank.storage.label_store import LabelStore, ScoredShard

LABEL_SCHEMA = pa.schema(
    [
        ("store", pa.string()),
        ("fingerprint", pa.string()),
        ("view", pa.string()),
        ("example_id", pa.string()),
        ("fold", pa.int64()),
        ("prompt_key", pa.string()),  # in hex, as the clusters of predictions
        ("teacher", pa.string()),  # that scored the example
        ("weights", pa.string()),
        ("proven", pa.bool_()),  # whether anything says which prompts the teacher saw
        *((f"target_{name}", pa.float64()) for name in CLASSES),
        *((f"logit_{name}", pa.float64()) for name in CLASSES),
        *((f"p_{name}", pa.float64()) for name in CLASSES),
    ]
)
SMALLEST = 1e-15  # probabilities are clipped as in evaluation, so that both say the same
_LOSS = " - ".join(f"target_{name} * ln(least(greatest(p_{name}, {SMALLEST}), 1 - {SMALLEST}))" for name in CLASSES)
OOF_SQL = f"""
    SELECT store, fingerprint, view, example_id, fold, prompt_key, teacher, proven, p_model_a, p_model_b, p_tie,
           -{_LOSS} AS log_loss,
           CASE WHEN p_model_a >= greatest(p_model_b, p_tie) THEN target_model_a
                WHEN p_model_b >= p_tie THEN target_model_b ELSE target_tie END AS correct
    FROM cache_labels
"""


def label_rows(urls: Sequence[str]) -> pa.Table:
    """Every example under every view that scored it, with the schema `LABEL_SCHEMA`; of folds not scored there is none.

    Raises:
        StoreError: no label store.
    """
    from logitbank.storage.label_store import LabelStore  # Zarr takes longer to import than most queries to answer

    batches = [batch for url in urls for batch in _batches(LabelStore.open(url))]
    return pa.Table.from_batches(batches, schema=LABEL_SCHEMA)


def _batches(store: LabelStore) -> Iterator[pa.RecordBatch]:
    for view in store.views:
        for shard in store.scorers(view):
            yield _shard_batch(store, view, shard)


def _shard_batch(store: LabelStore, view: str, shard: ScoredShard) -> pa.RecordBatch:
    logits = store.read_shard(view, shard.shard).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows, table = slice(shard.rows.start, shard.rows.stop), store.train
    same = {
        "store": store.url,
        "fingerprint": store.info.fingerprint,
        "view": view,
        "fold": shard.fold,
        "teacher": shard.model,
        "weights": shard.weights,
        "proven": shard.proven,
    }
    columns: dict[str, Any] = {name: [value] * len(logits) for name, value in same.items()}
    columns["example_id"] = table.example_id[rows]
    columns["prompt_key"] = [f"{key:016x}" for key in table.prompt_key[rows].tolist()]
    numbers = {"target": table.target[rows].astype(np.float64), "logit": logits, "p": odds / odds.sum(1, keepdims=True)}
    for kind, values in numbers.items():
        columns |= {f"{kind}_{name}": values[:, place] for place, name in enumerate(CLASSES)}
    return pa.RecordBatch.from_pydict(columns, schema=LABEL_SCHEMA)
