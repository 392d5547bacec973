"""The encodings `exact` and `float16`: logits in rank order, in the type that the name says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.storage.teacher_store.encodings.base import Arrays, Encoding, Slack, block_log_tails, log_tail_beyond
from logitbank.storage.teacher_store.layout import ArraySpec, rank_blocks
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.vocabulary import Vocabulary


class PlainEncoding:
    """Rank order, float32 or float16 logits, float32 scalars."""

    log_mass_dtype = "float32"

    def __init__(self, name: str, logits_dtype: str, slack: Slack, *, fixed_bytes: float, rank_bytes: float) -> None:
        self.name = name
        self.slack = slack
        self._logits_dtype = logits_dtype
        self._fixed_bytes, self._rank_bytes = fixed_bytes, rank_bytes

    def arrays(self, top_k: int) -> list[ArraySpec]:
        """See `Encoding.arrays`."""
        return [
            ArraySpec("token_ids", "int32", top_k, "pcodec"),
            ArraySpec("logits", self._logits_dtype, top_k, "pcodec"),
            ArraySpec("log_tails", self._logits_dtype, len(rank_blocks(top_k)), "pcodec", per_block=True),
            ArraySpec("logsumexp", "float32", None, "pcodec"),
            ArraySpec("entropy", "float32", None, "pcodec"),
            ArraySpec("gold_logit", "float32", None, "pcodec"),
            ArraySpec("gold_rank", "int32", None, "pcodec"),
        ]

    def encode(self, rows: TeacherRows, vocabulary: Vocabulary) -> dict[str, NDArray[Any]]:
        """See `Encoding.encode`."""
        limit = np.finfo(self._logits_dtype).max
        finite = rows.logits[np.isfinite(rows.logits)]
        if len(finite) and np.abs(finite).max() > limit:
            raise StoreError(
                f"store.encoding: {self.name} holds logits up to {limit:g}, got {np.abs(finite).max():g}; use exact"
            )
        return {
            "token_ids": rows.token_ids,
            "logits": rows.logits.astype(self._logits_dtype),
            "log_tails": block_log_tails(rows).astype(self._logits_dtype),
            "logsumexp": rows.logsumexp,
            "entropy": rows.entropy,
            "gold_logit": rows.gold_logit,
            "gold_rank": rows.gold_rank,
        }

    def decode(self, arrays: Arrays, top_k: int, vocabulary: Vocabulary) -> TeacherRows:
        """See `Encoding.decode`."""
        logits = arrays["logits"].astype(np.float32)
        return TeacherRows(
            token_ids=arrays["token_ids"][:, :top_k],
            logits=logits[:, :top_k],
            logsumexp=arrays["logsumexp"],
            entropy=arrays["entropy"],
            gold_logit=arrays["gold_logit"],
            gold_rank=arrays["gold_rank"],
            log_tail=log_tail_beyond(arrays["log_tails"][:, -1], logits[:, top_k:], arrays["logsumexp"]),
        )

    def encode_log_mass(self, log_mass: NDArray[np.float32]) -> NDArray[Any]:
        """See `Encoding.encode_log_mass`."""
        return log_mass

    def decode_log_mass(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """See `Encoding.decode_log_mass`."""
        return stored

    def bytes_per_token(self, top_k: int) -> float:
        """See `Encoding.bytes_per_token`."""
        return self._fixed_bytes + self._rank_bytes * top_k


# Bytes are fitted to what a small Qwen3 over six tasks took at K = 16 to 256, everything counted (docs/benchmarks.md).
EXACT: Encoding = PlainEncoding("exact", "float32", Slack(), fixed_bytes=12.0, rank_bytes=4.3)
FLOAT16: Encoding = PlainEncoding(
    "float16", "float16", Slack(relative=2e-3, log_mass=4e-3), fixed_bytes=10.0, rank_bytes=2.57
)
