"""Which checkpoint is best, and when to stop: by log loss on the selection part of the validation rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from logitbank.models.pair_scoring import score_pairs
from logitbank.student_train.classifier.batch import PackedPairs


@dataclass(frozen=True)
class Standing:
    """The state of a run after its evaluations so far.

    Attributes:
        best_step: the step of least log loss; None before the first evaluation.
        best_log_loss: that log loss, in nats.
        worse: evaluations since then.
    """

    best_step: int | None = None
    best_log_loss: float = float("inf")
    worse: int = 0

    def after(self, step: int, log_loss: float) -> Standing:
        """The standing after another evaluation; a tie is not an improvement."""
        if log_loss < self.best_log_loss:
            return Standing(step, log_loss)
        return Standing(self.best_step, self.best_log_loss, self.worse + 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which `Standing(**…)` makes it again."""
        return asdict(self)


@dataclass(frozen=True)
class SelectionRows:
    """The rows that choose among checkpoints: M of them.

    Attributes:
        packed: as the student reads them.
        target_MC: float32 probabilities.
        prompt_key_M: uint64.
    """

    packed: PackedPairs
    target_MC: NDArray[np.float32]
    prompt_key_M: NDArray[np.uint64]


def selection_log_loss(
    student: torch.nn.Module, rows: SelectionRows, accelerator: Accelerator, batch_tokens: int
) -> float:
    """The mean of −Σ target · log probability over the rows, in nats; ranks share them, and every rank calls this."""
    mine = range(accelerator.process_index, len(rows.packed), accelerator.num_processes)
    classifier: Any = accelerator.unwrap_model(student)
    classifier.eval()
    logits_MC = score_pairs(classifier, [rows.packed[row] for row in mine], batch_tokens=batch_tokens)
    classifier.train()
    log_probabilities = torch.from_numpy(logits_MC).double().log_softmax(dim=1)
    total = -(torch.from_numpy(rows.target_MC[list(mine)]).double() * log_probabilities).sum()
    sums = accelerator.reduce(total.to(accelerator.device), "sum")
    return float(sums) / len(rows.packed)
