"""What a λ strategy is: one part of `distillation.strategy`, all of it in one file.

Shapes: T answer tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from accelerate import Accelerator

from logitbank.configs import Config
from logitbank.storage import TeacherStore
from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.step_loss import StepLoss


class Forward(Protocol):
    """A forward pass of the student over a micro-batch."""

    def __call__(self, batch: Batch, lambda_T: torch.Tensor) -> StepLoss:
        """The micro-batch's loss and its terms, each KD term weighted by its λ."""


@dataclass(frozen=True)
class Setting:
    """What a strategy is made for.

    Attributes:
        config: of the run.
        tasks: of the run; `Batch.task_T` counts them.
        store: that the run learns from.
        accelerator: of the run.
        student: the prepared student.
    """

    config: Config
    tasks: tuple[str, ...]
    store: TeacherStore
    accelerator: Accelerator
    student: torch.nn.Module


@dataclass(frozen=True)
class StepWork:
    """One optimizer step as a strategy sees it.

    Attributes:
        step: counted from 0.
        batches: this rank's micro-batches, on its device.
        measure: a forward pass beside the step's own.
        forward: the forward pass of the step's own, whose losses are logged.
        backward: λ of every micro-batch -> their losses, detached; leaves the step's gradient in the parameters.
    """

    step: int
    batches: Sequence[Batch]
    measure: Forward
    forward: Forward
    backward: Callable[[Sequence[torch.Tensor]], list[StepLoss]]


@dataclass(frozen=True)
class Backward:
    """What a backward pass of a step did.

    Attributes:
        losses: of this rank's micro-batches, detached.
        scale: what every λ of the step was multiplied by.
        metrics: what the training log shows of it.
    """

    losses: list[StepLoss]
    scale: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Strategy:
    """One part of a λ strategy. Parts multiply: λ_t = base of the token's task × Π factors.

    A part overrides what it needs. Every rank runs every method, at the same steps.

    Attributes:
        sets_base: whether it gives the base; only one part of a strategy may.
        compares_gradients: whether it needs whole, unscaled gradients: refused with sharding and with fp16.
        needs: which of `storage.BOUNDABLE` it has to know exactly of a view.
        makes_gradients: whether it runs the step's backward pass; only one part of a strategy may.
    """

    sets_base: ClassVar[bool] = False
    compares_gradients: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    makes_gradients: ClassVar[bool] = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise `ConfigError` for a configuration with this part that cannot work."""

    def prepare(self, work: StepWork, factors: Callable[[Batch], torch.Tensor]) -> None:
        """Measure what is needed before the weights move; parts that set the base come last.

        Args:
            work: the step.
            factors: a micro-batch -> what its λ will be without the base, (T,): schedule, gate and all parts' factors.
        """

    def base(self) -> torch.Tensor:
        """λ of every task, (tasks,) float32, where `sets_base`."""
        raise NotImplementedError

    def factor(self, batch: Batch) -> torch.Tensor | float:
        """What the λ of every answer token is multiplied by, (T,) or one number."""
        return 1.0

    def backward(self, work: StepWork, lambdas: Sequence[torch.Tensor]) -> Backward:
        """Leave the step's gradient in the parameters, where `makes_gradients`."""
        raise NotImplementedError

    def learn(self, work: StepWork, done: Backward) -> None:
        """Take up what the step showed; its λ were multiplied by `done.scale`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, under names that no other part uses."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up this part's share of a state."""
