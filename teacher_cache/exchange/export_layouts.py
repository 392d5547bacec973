"""Rows of a store as Arrow batches, in the layouts that others read.

Shape letters: N examples, L tokens of a sequence, M tokens of all sequences, T answer tokens, K ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitbank.errors import ConfigError
from logitbank.storage import ExampleRecord, TeacherRows
from logitbank.teacher_cache.exchange.foreign import NOT_LEARNT


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        view: whose rows.
        layout: key of `EXPORT_LAYOUTS`.
        top_k: K; None for all ranks.
        logits: whether the plain layout has logits instead of log-probabilities.
        normalized: axolotl: whether a row's probabilities sum to 1 over the `vocabulary` or over its `top-k`.
    """

    view: str
    layout: str = "plain"
    top_k: int | None = None
    logits: bool = False
    normalized: str = "top-k"


class ExportLayout(Protocol):
    """How one layout writes rows."""

    def token_bytes(self, top_k: int, options: ExportOptions) -> tuple[int, int]:
        """Bytes of a token of a sequence, and of an answer token, before compression."""

    def batch(
        self,
        ids: Sequence[str],
        examples: Sequence[ExampleRecord],
        rows: TeacherRows,
        bounded: Collection[str],
        options: ExportOptions,
    ) -> pa.RecordBatch:
        """Some examples.

        Args:
            ids: N names.
            examples: N of them.
            rows: (T, K) theirs, end to end.
            bounded: what the view does not know exactly.
            options: see there.
        """


class PlainRows:
    """A row of K for each answer token, with all that the store knows of it."""

    def token_bytes(self, top_k: int, options: ExportOptions) -> tuple[int, int]:
        """See `ExportLayout`."""
        return 8, 8 * top_k + 16

    def batch(
        self,
        ids: Sequence[str],
        examples: Sequence[ExampleRecord],
        rows: TeacherRows,
        bounded: Collection[str],
        options: ExportOptions,
    ) -> pa.RecordBatch:
        """See `ExportLayout`. What is only bounded is left out."""
        if options.logits and {"logits", "logsumexp"} & set(bounded):
            raise ConfigError(
                f"--logits: the view {options.view} only has log-probabilities (bounded: {', '.join(bounded)}); "
                "leave the option out"
            )
        lengths = [len(example.answer_ids) for example in examples]
        columns: dict[str, pa.Array] = {
            "id": pa.array(ids, pa.string()),
            "task": pa.array([example.task for example in examples], pa.string()),
            "language": pa.array([example.language for example in examples], pa.string()),
            **_sequences(examples),
            "top_ids": _nested(rows.token_ids, lengths),
        }
        if options.logits:
            columns["logits"] = _nested(rows.logits, lengths)
        else:
            columns["top_logprobs"] = _nested(_log_probabilities(rows, "vocabulary"), lengths)
        scalars: dict[str, NDArray[Any]] = {}
        if not {"logits", "logsumexp"} & set(bounded):
            scalars["logsumexp"] = rows.logsumexp
        if "entropy" not in bounded:
            scalars["entropy"] = rows.entropy
        if "gold" not in bounded and options.logits:
            scalars["gold_logit"] = rows.gold_logit
        elif "gold" not in bounded:
            scalars["gold_logprob"] = _less(rows.gold_logit, rows.logsumexp)
        if "gold" not in bounded:
            scalars["gold_rank"] = rows.gold_rank
        return pa.RecordBatch.from_pydict(columns | {name: _runs(of, lengths) for name, of in scalars.items()})


class AxolotlRows:
    """What axolotl's preprocessing writes: a row of K for each token, which predicts the next; others are masked."""

    def token_bytes(self, top_k: int, options: ExportOptions) -> tuple[int, int]:
        """See `ExportLayout`."""
        return 9 * top_k + 9, 0

    def batch(
        self,
        ids: Sequence[str],
        examples: Sequence[ExampleRecord],
        rows: TeacherRows,
        bounded: Collection[str],
        options: ExportOptions,
    ) -> pa.RecordBatch:
        """See `ExportLayout`. Without names: axolotl's collator makes a tensor of every column."""
        lengths, top_k = [len(example.input_ids) for example in examples], rows.token_ids.shape[1]
        starts = np.cumsum([0, *lengths])
        at = np.concatenate(
            [start + example.answer_positions - 1 for start, example in zip(starts[:-1], examples, strict=True)]
        )
        tokens_MK = np.tile(np.arange(top_k, dtype=np.int32), (starts[-1], 1))
        logprobs_MK = np.full((starts[-1], top_k), -np.inf, np.float32)
        mask_MK = np.zeros((starts[-1], top_k), np.int8)
        tokens_MK[at], logprobs_MK[at], mask_MK[at] = rows.token_ids, _log_probabilities(rows, options.normalized), 1
        return pa.RecordBatch.from_pydict(
            {
                **_sequences(examples),
                "attention_mask": _runs(np.ones(starts[-1], np.int8), lengths),
                "target_token_ids": _nested(tokens_MK, lengths),
                "target_logprobs": _nested(logprobs_MK, lengths),
                "target_mask": _nested(mask_MK, lengths),
            }
        )


def _sequences(examples: Sequence[ExampleRecord]) -> dict[str, pa.Array]:
    """`input_ids`, and `labels`, which are −100 outside the answers."""
    lengths = [len(example.input_ids) for example in examples]
    ids = np.concatenate([example.input_ids for example in examples])
    learned = np.concatenate([example.sequence.answer_mask for example in examples])
    return {
        "input_ids": _runs(ids, lengths),
        "labels": _runs(np.where(learned, ids, np.int32(NOT_LEARNT)), lengths),
    }


def _log_probabilities(rows: TeacherRows, normalized: str) -> NDArray[np.float32]:
    """(T, K) float32, computed in float64."""
    if normalized == "vocabulary":
        return _less(rows.logits, rows.logsumexp[:, None])
    wide = rows.logits.astype(np.float64)
    peak = wide[:, :1]
    return _less(wide, peak + np.log(np.exp(wide - peak).sum(axis=1, keepdims=True)))


def _less(values: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float32]:
    difference: NDArray[np.float32] = (values.astype(np.float64) - whole).astype(np.float32)
    return difference


def _runs(values: NDArray[Any], lengths: Sequence[int]) -> pa.Array:
    """Lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), pa.array(values))


def _nested(values: NDArray[Any], lengths: Sequence[int]) -> pa.Array:
    """Lists of these lengths, of lists as long as the rows of `values` are wide."""
    rows, width = values.shape
    inner = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * width, pa.int32()), pa.array(values.ravel()))
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), inner)


PLAIN, AXOLOTL = PlainRows(), AxolotlRows()
