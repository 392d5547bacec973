"""What programs of other people train on: examples with their teacher rows, and batches of them as tensors.

Shapes: B sequences, L padded length, T answer tokens of the batch, K teacher logits, M drawn tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, TeacherStore
from logitbank.student_train.losses.base import TeacherLogits


@dataclass(frozen=True)
class RowsInfo:
    """What holds for all rows of a view.

    Attributes:
        vocab_size: rows of the teacher's `lm_head`.
        signal: `topk`, `sampled` or `hybrid`.
        untaught: answer tokens whose rows carry no teacher term.
        bounded: which of `storage.BOUNDABLE` they do not know exactly.
    """

    vocab_size: int
    signal: str = "topk"
    untaught: tuple[int, ...] = ()
    bounded: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: TeacherStore, view: str | None) -> RowsInfo:
        """What a store says of the rows of a view; of none, where the view is None."""
        info = store.info
        return cls(info.vocab_size, info.signal, info.untaught, () if view is None else store.bounded(view))


@dataclass(frozen=True)
class TaughtExample:
    """One example and what its teacher said.

    Attributes:
        example_id: as the store names it.
        sequence: what the student reads, its answer spans marked.
        rows: teacher rows of its answer tokens, in order; None without a view.
        info: of the rows.
    """

    example_id: str
    sequence: AnsweredSequence
    rows: TeacherRows | None
    info: RowsInfo


@dataclass(frozen=True)
class TeacherTensors:
    """What the teacher said of the answer tokens of a batch, and where the student predicts them.

    Attributes:
        index_T: (T,) int64, positions in the flattened (B·L) logits that predict the answer tokens, ascending.
        gold_T: (T,) int64, the answer tokens.
        token_ids_TC: (T, K + M) int32, the K tokens that the teacher ranked highest, then the drawn ones.
        logits: the rows' numbers, float32.
        info: of all rows.
        shape: (B, L) of the batch.
    """

    index_T: torch.Tensor
    gold_T: torch.Tensor
    token_ids_TC: torch.Tensor
    logits: TeacherLogits
    info: RowsInfo
    shape: tuple[int, int]

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> TeacherTensors:
        """The same on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TeacherTensors:
        """Called by `DataLoader(pin_memory=True)`."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TeacherTensors:
        numbers: dict[str, Any] = {f.name: getattr(self.logits, f.name) for f in fields(self.logits)}
        changed: dict[str, Any] = {n: None if value is None else change(value) for n, value in numbers.items()}
        return TeacherTensors(
            index_T=change(self.index_T),
            gold_T=change(self.gold_T),
            token_ids_TC=change(self.token_ids_TC),
            logits=TeacherLogits(**changed),
            info=self.info,
            shape=self.shape,
        )


class DistillationBatch(dict[str, Any]):
    """A batch as any causal language model of transformers takes it, and the teacher's tensors beside it.

    A dictionary, whose items are attributes too: `input_ids`, `attention_mask` and `labels`, each (B, L) int64, and
    `teacher`, `TeacherTensors` or None. Labels are −100 outside the answers, as transformers' losses expect.
    """

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model reads: `model(**batch.inputs).logits`."""
        return {name: value for name, value in self.items() if name not in ("labels", "teacher")}

    @property
    def teacher(self) -> TeacherTensors | None:
        """The teacher's tensors; None if the data have no view."""
        return self.get("teacher")

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a batch has no {name!r}, only {', '.join(self)}") from None

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> DistillationBatch:
        """The batch on a device."""
        return type(self)(
            {
                name: value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
                for name, value in self.items()
            }
        )


def without_teacher(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], TeacherTensors | None]:
    """A batch's inputs and labels, and apart from them its teacher."""
    rest = {name: value for name, value in inputs.items() if name != "teacher"}
    return rest, inputs.get("teacher")
