"""What every optimizer step does whatever its loss: the learning rate, gradients over micro-batches, one move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator

from logitbank.configs.schema import TrainingConfig


class BatchLoss(Protocol):
    """What a micro-batch adds to the step's loss."""

    @property
    def total(self) -> torch.Tensor:
        """Its share of the step's loss, differentiable: the loss is the sum of all shares, over ranks too."""

    def detached(self) -> BatchLoss:
        """The same numbers without their graph."""


BatchT = TypeVar("BatchT")
LossT = TypeVar("LossT", bound=BatchLoss)


class Optimizer:
    """The prepared student and its prepared optimizer."""

    def __init__(
        self, accelerator: Accelerator, student: torch.nn.Module, optimizer: Any, training: TrainingConfig
    ) -> None:
        self._accelerator = accelerator
        self._student = student
        self._optimizer = optimizer
        self._training = training

    def begin(self, step: int) -> float:
        """Set the learning rate of a step, counted from 0, and return it."""
        learning_rate = scheduled_learning_rate(self._training, step)
        for group in self._optimizer.param_groups:  # first: DeepSpeed moves the weights inside the last backward
            group["lr"] = learning_rate
        return learning_rate

    def backward(self, batches: Sequence[BatchT], loss_of: Callable[[int, BatchT], LossT]) -> list[LossT]:
        """Forward and backward over the micro-batches; gradients of all ranks are summed in the last one.

        Args:
            batches: of this rank.
            loss_of: the loss of a micro-batch, given its number and itself.

        Returns:
            The losses without their graphs.
        """
        losses = []
        # packed steps have different numbers of them
        self._accelerator.gradient_accumulation_steps, self._accelerator.step = len(batches), 0
        for number, batch in enumerate(batches):
            with self._accelerator.accumulate(self._student):
                loss = loss_of(number, batch)
                # the step's loss is a sum over ranks and accumulation steps, divided once by all it is a mean over;
                # Accelerate and DDP would divide again by how many of either there are
                self._accelerator.backward(loss.total * (len(batches) * self._accelerator.num_processes))
            losses.append(loss.detached())
        return losses  # type: ignore[return-value]  # a loss without its graph is of its own type

    def move(self) -> torch.Tensor | None:
        """Clip the gradients and move the weights; the gradients' norm before clipping, if it is known."""
        limit = self._training.grad_clip or math.inf
        norm: torch.Tensor | None = self._accelerator.clip_grad_norm_(self._student.parameters(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm


def scheduled_learning_rate(training: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to zero; a pure function of the step, counted from 0."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.max_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
