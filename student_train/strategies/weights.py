"""λ of each answer token: how much the teacher counts, decided by `distillation.strategy`.

    λ_t = base × schedule(step) × Π factors

`base` is `lambda_distill` (`fixed`), one value per task (`per_task`) or one learnt per task (`meta`).
The factors of a strategy written with `*`, such as `per_task*entropy*gradient_conflict`, multiply, and so
does the gate. Whatever needs gradients of its own is computed in `student_train.gradients`.

Shapes: T answer tokens of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from logitbank.configs.schema import DistillationConfig
from logitbank.student_train.data import Batch
from logitbank.student_train.losses.base import TeacherLogits


class LambdaWeights:
    """λ_t of every answer token, and the state that a strategy learns on the way.

    Attributes:
        parts: the strategy's parts.
    """

    def __init__(
        self,
        distillation: DistillationConfig,
        tasks: Sequence[str],
        *,
        vocab_size: int,
        max_steps: int,
        device: torch.device,
    ) -> None:
        self._distillation = distillation
        self._vocab_size = vocab_size
        self._schedule_steps = distillation.schedule_steps or max_steps
        self.parts = frozenset(distillation.strategy.split("*"))
        start = [distillation.lambda_distill] * len(tasks)
        if "per_task" in self.parts or ("meta" in self.parts and distillation.meta_init == "per_task"):
            start = [distillation.lambda_per_task[task] for task in tasks]
        self._per_task = torch.tensor(start, dtype=torch.float32, device=device)
        if "meta" in self.parts:
            self._per_task = self._per_task.logit()
        self._ema: tuple[float, float] | None = None

    def token_weights(self, batch: Batch, step: int) -> torch.Tensor:
        """λ_t, (T,) float32, without gradient; all but the factor of `gradient_conflict`.

        Args:
            batch: a micro-batch with teacher rows, on its device.
            step: optimizer step, counted from 0.
        """
        assert batch.teacher is not None
        weights_T = self.lambda_per_task()[batch.task_T]
        weights_T = weights_T * schedule_factor(self._distillation.schedule, step, self._schedule_steps)
        if "entropy" in self.parts:
            weights_T = weights_T * entropy_factor(batch.teacher.entropy_T, self._vocab_size)
        if "loss_ratio" in self.parts:
            weights_T = weights_T * self._loss_ratio()
        if self._distillation.gate != "none":
            weights_T = weights_T * gate_factor(self._distillation.gate, batch.teacher)
        return weights_T

    def lambda_per_task(self) -> torch.Tensor:
        """`base` of every task, (tasks,)."""
        return self._per_task.sigmoid() if "meta" in self.parts else self._per_task

    def observe_losses(self, ce: float, kd: float) -> None:
        """Update the averages of `loss_ratio` with one step's mean CE and KD per answer token."""
        decay = self._distillation.ema_decay
        if self._ema is None:
            self._ema = (ce, kd)
        else:
            self._ema = (decay * self._ema[0] + (1 - decay) * ce, decay * self._ema[1] + (1 - decay) * kd)

    @property
    def needs_first_losses(self) -> bool:
        """Whether `loss_ratio` still waits for the losses of the very first step."""
        return "loss_ratio" in self.parts and self._ema is None

    def update_meta(self, alignment: torch.Tensor) -> None:
        """One outer step of `meta`: logit λ_i ← logit λ_i − η · (−⟨∇val, ∇KD_i⟩).

        A first-order bilevel step (DARTS, Liu et al. 2019, arXiv:1806.09055): a student step moves θ by
        −α λ_i ∇KD_i, so the held-out loss falls with λ_i where the two gradients agree.

        Args:
            alignment: ⟨∇val, ∇KD_i⟩ for every task i, (tasks,).
        """
        self._per_task = self._per_task + self._distillation.meta_learning_rate * alignment.to(self._per_task)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"per_task": self._per_task.cpu(), "ema": self._ema}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        self._per_task = state["per_task"].to(self._per_task.device)
        self._ema = tuple(state["ema"]) if state["ema"] is not None else None

    def _loss_ratio(self) -> float:
        """EMA(CE) / EMA(KD) of the steps before this one: scales the KD term to the size of CE.

        The first step, which has none before it, uses its own losses.
        """
        assert self._ema is not None
        return self._ema[0] / max(self._ema[1], 1e-12)


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """How much of λ is left at a step, counted from 0.

    `constant` 1; `warmup_then_sft` 1 for the first `steps` steps and 0 after them; `linear` falls from 1 to
    0 over `steps`; `cosine` likewise, along half a cosine.
    """
    progress = min(1.0, step / steps)
    return {
        "constant": 1.0,
        "warmup_then_sft": float(step < steps),
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[schedule]


def entropy_factor(entropy_T: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """1 − H(teacher) / log V, (T,): a teacher that does not know counts less.

    Args:
        entropy_T: of the teacher's full distribution, nats.
        vocab_size: V, rows of the teacher's `lm_head`.
    """
    return (1 - entropy_T / math.log(vocab_size)).clamp(min=0)


def gate_factor(gate: str, teacher: TeacherLogits) -> torch.Tensor:
    """Weight of each token by what the cache says about the teacher, (T,), between 0 and 1.

    `teacher_correct`: 1 where the gold token is the teacher's first choice (gold rank 0), else 0.
    `fewshot_gain`: max(0, 1 − p_zeroshot(gold) / p_view(gold)): the share of the gold token's probability
    that the view owes to its demonstrations; 0 where they did not help.
    """
    if gate == "teacher_correct":
        return (teacher.gold_rank_T == 0).float()
    assert gate == "fewshot_gain", gate
    assert teacher.zeroshot_cross_entropy_T is not None
    gain_T = teacher.zeroshot_cross_entropy_T - teacher.cross_entropy_T
    return (-torch.expm1(-gain_T)).clamp(min=0)
