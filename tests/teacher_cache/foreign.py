"""Caches as other toolkits write them, of one imagined teacher whose every log-probability is known in float64.

Shape letters: L tokens of a sequence, V rows of the `lm_head`, K ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests import tiny

TOKENS, VOCAB, TOP_K, EXAMPLES = 60, 64, 8, 12
Row = dict[str, Any]


def save_base(path: Path) -> Path:
    """The students' base model."""
    return tiny.save_model(path, tiny.word_tokenizer(TOKENS), rows=VOCAB)


class Example:
    """One sequence, what is learned of it, and what the teacher says.

    Attributes:
        ids: (L,) tokens.
        labels: (L,) tokens to learn, −100 elsewhere.
        log_p: (L, V) float64; row p is of the token at p + 1.
        logits: (L, V) float64, the same up to a constant for each row.
    """

    def __init__(self, number: int) -> None:
        rng = np.random.default_rng([number, 9])
        length = 8 + number % 5
        self.ids = rng.integers(2, TOKENS, length)
        self.labels = np.where(np.arange(length) >= length - 4, self.ids, -100)
        if number % 2:
            self.labels[2] = self.ids[2]  # a second answer
        self.logits = rng.normal(0, 2, (length, VOCAB))
        self.logits[np.arange(length - 1), self.ids[1:]] += rng.choice([4.0, -6.0], length - 1, p=[0.9, 0.1])
        self.logits += rng.normal(10, 3, (length, 1))
        peak = self.logits.max(axis=1, keepdims=True)
        self.log_p = self.logits - peak - np.log(np.exp(self.logits - peak).sum(axis=1, keepdims=True))

    @property
    def positions(self) -> np.ndarray:
        """Where its answer tokens stand."""
        return np.flatnonzero(self.labels != -100)

    def top(self, top_k: int = TOP_K) -> np.ndarray:
        """(L, K) tokens, most likely first."""
        return np.argsort(-self.log_p[:, :TOKENS], axis=1, kind="stable")[:, :top_k]

    def top_log_p(self, top_k: int = TOP_K) -> np.ndarray:
        """(L, K) their log-probabilities."""
        return np.take_along_axis(self.log_p, self.top(top_k), axis=1)

    def entropy(self) -> np.ndarray:
        """(L,) nats."""
        return -(np.exp(self.log_p) * self.log_p).sum(axis=1)


ALL = [Example(number) for number in range(EXAMPLES)]


def plain(example: Example, **changes: Any) -> Row:
    """A row of the plain layout without what is optional."""
    at = example.positions - 1
    row = {"input_ids": example.ids.tolist(), "labels": example.labels.tolist()}
    row |= {"top_ids": example.top()[at].tolist(), "top_logprobs": example.top_log_p()[at].tolist()}
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def exact(example: Example) -> Row:
    """The same with all that a store keeps."""
    at, gold = example.positions - 1, example.ids[example.positions]
    ranks = (example.logits[at, :TOKENS] > example.logits[at, gold][:, None]).sum(axis=1)
    return plain(
        example,
        top_logprobs=None,
        logits=np.take_along_axis(example.logits, example.top(), axis=1)[at].tolist(),
        logsumexp=np.log(np.exp(example.logits[at]).sum(axis=1)).tolist(),
        entropy=example.entropy()[at].tolist(),
        gold_logit=example.logits[at, gold].tolist(),
        gold_rank=ranks.tolist(),
    )


def axolotl(example: Example, *, ahead: int, skip: int = 0, entries: bool = False) -> Row:
    """A row of axolotl's layout; `ahead` is 1 where a row predicts the next token, and `skip` rows are left out."""
    ids, values = example.top(), example.top_log_p()
    if not ahead:  # the first token is predicted by nothing
        ids = np.concatenate([np.arange(TOP_K)[None], ids[:-1]])
        values = np.concatenate([np.full((1, TOP_K), -np.inf), values[:-1]])
    row: Row = {"input_ids": example.ids.tolist(), "labels": example.labels.tolist()}
    if entries:
        row["logprobs"] = [
            [{"token": f"token_id:{token}", "logprob": value} for token, value in zip(*pair, strict=True)]
            for pair in zip(ids[skip:].tolist(), values[skip:].tolist(), strict=True)
        ]
        return row
    return row | {"logprobs": values[skip:].tolist(), "target_token_ids": ids[skip:].tolist()}


def renormalised(row: Row) -> Row:
    """An axolotl row whose probabilities are divided by their sum, as its loaders do."""
    values = np.asarray(row.pop("logprobs"))
    with np.errstate(invalid="ignore"):
        row["target_logprobs"] = (values - np.log(np.exp(values).sum(axis=1, keepdims=True))).tolist()
    return row


def write(path: Path, rows: list[Row], **options: Any) -> str:
    """Rows as Parquet, or as JSON lines by the name; their path."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return str(path)
