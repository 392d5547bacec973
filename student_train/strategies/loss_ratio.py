"""`loss_ratio`: the KD term is scaled to the size of CE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.step_loss import StepLoss
from logitbank.student_train.strategies.base import Backward, Setting, StepWork, Strategy

SMALLEST_KD = 1e-12  # nats: no ratio to less


class LossRatio(Strategy):
    """Multiplies λ by EMA(CE) / EMA(KD) of the steps before this one; `distillation.ema_decay` is the averages' decay.

    The first step, which has none before it, uses its own losses, from a forward pass without gradients.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._averages: tuple[float, float] | None = None

    def prepare(self, work: StepWork, factors: Callable[[Batch], torch.Tensor]) -> None:
        """Measure the first step's losses."""
        if self._averages is not None:
            return
        with torch.no_grad():
            losses = [
                work.measure(batch, torch.zeros_like(batch.gold_T, dtype=torch.float32)) for batch in work.batches
            ]
        self.observe(*mean_losses(self.setting.accelerator, losses, work.batches))

    def factor(self, batch: Batch) -> float:
        """One number for all tokens."""
        assert self._averages is not None
        return self._averages[0] / max(self._averages[1], SMALLEST_KD)

    def learn(self, work: StepWork, done: Backward) -> None:
        """Average in the step's losses."""
        self.observe(*mean_losses(self.setting.accelerator, done.losses, work.batches))

    def observe(self, ce: float, kd: float) -> None:
        """Update the averages with one step's mean CE and KD per answer token."""
        decay = self.setting.config.distillation.ema_decay
        if self._averages is None:
            self._averages = (ce, kd)
        else:
            before = self._averages
            self._averages = (decay * before[0] + (1 - decay) * ce, decay * before[1] + (1 - decay) * kd)

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"ema": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the averages."""
        self._averages = None if state["ema"] is None else (state["ema"][0], state["ema"][1])


def mean_losses(accelerator: Accelerator, losses: Sequence[StepLoss], batches: Sequence[Batch]) -> tuple[float, float]:
    """Mean CE and KD per answer token of a whole step, over all ranks, weighted as in the loss."""
    pairs = list(zip(batches, losses, strict=True))
    ce = torch.stack([batch.step_mean(loss.ce_T.detach()) for batch, loss in pairs]).sum()
    kd = torch.stack([batch.step_mean(loss.kd_T.detach()) for batch, loss in pairs]).sum()
    total = accelerator.reduce(torch.stack([ce, kd]).double(), "sum")
    return total[0].item(), total[1].item()
