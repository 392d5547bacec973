"""Batches of examples with their teacher rows, for any training loop.

Shapes: B sequences, L padded length, T answer tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, concatenate
from logitbank.student_train.batch import teacher_ids, teacher_logits
from logitbank.student_train.taught import DistillationBatch, RowsInfo, TaughtExample, TeacherTensors

NO_LABEL = -100  # as transformers marks tokens that no loss counts


class DistillationCollator:
    """Collates examples into a `DistillationBatch`: the `collate_fn` of a `DataLoader` over a `TeacherDataset`."""

    def __init__(self, pad_id: int, *, pad_to_multiple_of: int = 1) -> None:
        """How sequences are padded, on the right.

        Args:
            pad_id: follows shorter sequences, where the attention mask is 0.
            pad_to_multiple_of: what the padded length is a multiple of.
        """
        self._pad_id = pad_id
        self._multiple = pad_to_multiple_of

    def __call__(self, examples: Sequence[TaughtExample]) -> DistillationBatch:
        """The batch of some examples, in their order."""
        sequences = [example.sequence for example in examples]
        longest = max(map(len, sequences))
        length = -(-longest // self._multiple) * self._multiple
        shape = (len(sequences), length)
        input_ids = np.full(shape, self._pad_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, NO_LABEL, dtype=np.int64)
        for row, sequence in enumerate(sequences):
            input_ids[row, : len(sequence)] = sequence.ids
            attention_mask[row, : len(sequence)] = 1
            labels[row, sequence.answer_positions] = sequence.answer_ids
        starts = np.arange(len(sequences)) * length
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": torch.from_numpy(labels),
        }
        rows = [example.rows for example in examples if example.rows is not None]
        batch["teacher"] = teacher_tensors(sequences, starts, rows, examples[0].info, shape) if rows else None
        return DistillationBatch(batch)


def teacher_tensors(
    sequences: Sequence[AnsweredSequence],
    starts: NDArray[np.int64],
    rows: Sequence[TeacherRows],
    info: RowsInfo,
    shape: tuple[int, int],
) -> TeacherTensors:
    """The teacher's tensors of sequences in a batch.

    Args:
        sequences: of the batch.
        starts: where each begins in the flattened batch, ascending.
        rows: of each sequence.
        info: of all rows.
        shape: (B, L) of the batch.
    """
    index = [start + sequence.logit_positions for start, sequence in zip(starts, sequences, strict=True)]
    gold_T = torch.from_numpy(np.concatenate([sequence.answer_ids for sequence in sequences]).astype(np.int64))
    joined = concatenate(rows)
    return TeacherTensors(
        index_T=torch.from_numpy(np.concatenate(index)),
        gold_T=gold_T,
        token_ids_TC=teacher_ids(joined),
        logits=teacher_logits(joined, None, info.signal, gold_T, info.untaught),
        info=info,
        shape=shape,
    )
