"""λ of each answer token: how much the teacher counts, decided by `distillation.strategy`, `schedule` and `gate`.

    λ_t = base of the token's task × schedule(step) × gate_t × Π factors_t

The parts of a strategy written with `*`, such as `per_task*entropy*gradient_conflict`, multiply. At most one gives
the base; without one it is `distillation.lambda_distill`.

Shapes: T answer tokens of a micro-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from logitbank.configs.schema import ConfigError
from logitbank.registry import STRATEGIES
from logitbank.student_train.batch import Batch
from logitbank.student_train.sharding import is_sharded
from logitbank.student_train.strategies.base import Backward, Setting, StepWork, Strategy
from logitbank.student_train.strategies.gate import gate_factor
from logitbank.student_train.strategies.schedule import schedule_factor


class TokenWeights:
    """λ_t of every answer token, by the parts of a strategy, and what they learn on the way."""

    def __init__(self, setting: Setting) -> None:
        """Raises ConfigError if a part finds something missing in the student or the store."""
        self._setting = setting
        chosen: list[type[Strategy]] = [STRATEGIES[name] for name in setting.config.distillation.strategy.split("*")]
        # a part that sets the base may learn from the factors of all others: they are ready before it
        self._parts = [part(setting) for part in sorted(chosen, key=lambda part: part.sets_base)]

    def prepare(self, work: StepWork) -> list[torch.Tensor]:
        """λ_t of every micro-batch, after all that the parts measure before the weights move."""
        factors = functools.partial(self._factors, step=work.step)
        for part in self._parts:
            part.prepare(work, factors)
        return [self.token_weights(batch, work.step) for batch in work.batches]

    def backward(self, work: StepWork, lambdas: Sequence[torch.Tensor]) -> Backward:
        """Leave the step's gradient in the parameters, as the part says that makes it, or the ordinary one."""
        for part in self._parts:
            if part.makes_gradients:
                return part.backward(work, lambdas)
        return Backward(work.backward(lambdas))

    def learn(self, work: StepWork, done: Backward) -> None:
        """Let every part take up what the step showed."""
        for part in self._parts:
            part.learn(work, done)

    def token_weights(self, batch: Batch, step: int) -> torch.Tensor:
        """λ_t, (T,) float32, without gradient, before whatever a backward pass multiplies it by.

        Args:
            batch: a micro-batch with teacher rows, on its device.
            step: optimizer step, counted from 0.
        """
        return self.base()[batch.task_T] * self._factors(batch, step)

    def base(self) -> torch.Tensor:
        """λ of every task before any factor, (tasks,) float32."""
        for part in self._parts:
            if part.sets_base:
                return part.base()
        device = self._setting.accelerator.device
        return torch.full((len(self._setting.tasks),), self._setting.config.distillation.lambda_distill, device=device)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {name: value for part in self._parts for name, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        for part in self._parts:
            part.load_state_dict(state)

    def _factors(self, batch: Batch, step: int) -> torch.Tensor:
        """Everything but the base, (T,)."""
        assert batch.teacher is not None
        distillation = self._setting.config.distillation
        steps = distillation.schedule_steps or self._setting.config.training.max_steps
        factor_T = gate_factor(distillation.gate, batch.teacher)
        factor_T = factor_T * schedule_factor(distillation.schedule, step, steps)
        for part in self._parts:
            factor_T = factor_T * part.factor(batch)
        return factor_T


def refuse_sharding(accelerator: Accelerator, strategy: str) -> None:
    """Raise `ConfigError` if parameters are sharded and a part compares whole gradients."""
    for name in strategy.split("*"):
        if is_sharded(accelerator) and STRATEGIES[name].compares_gradients:
            raise ConfigError(
                f"distillation.strategy: {name} needs whole gradients, but {accelerator.distributed_type.value} "
                "shards them; use DDP or one process, or another strategy"
            )
