"""One optimizer step, from its micro-batches to new weights. Read `Stepper.take_step` from top to bottom."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from logitbank.configs.schema import TrainingConfig
from logitbank.storage import TeacherStore
from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.base import Loss, make_loss
from logitbank.student_train.losses.step_loss import StepLoss, step_loss
from logitbank.student_train.module import run_student
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.records import Run
from logitbank.student_train.strategies.base import Backward, Forward, Setting, StepWork
from logitbank.student_train.strategies.combined import TokenWeights


@dataclass(frozen=True)
class StepDone:
    """What the training log needs of a step; losses and λ per micro-batch of this rank, without graph.

    Attributes:
        losses: of every micro-batch.
        lambdas: of every micro-batch, as they weighed its KD terms.
        learning_rate: of the step.
        grad_norm: before clipping.
        metrics: what the strategy shows of the step.
    """

    losses: list[StepLoss]
    lambdas: list[torch.Tensor]
    learning_rate: float
    grad_norm: torch.Tensor | None
    metrics: Mapping[str, float]


class Stepper:
    """The prepared student with its optimizer and λ strategy."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: torch.nn.Module,
        optimizer: Any,
        run: Run,
        store: TeacherStore,
        order: ExampleOrder,
    ) -> None:
        self._accelerator = accelerator
        self._student = student
        self._optimizer = optimizer
        self._config = run.config
        self._kd_term: Loss | None = None
        self._weights: TokenWeights | None = None
        if run.view is not None:
            self._kd_term = make_loss(run.config.distillation, store.info.vocab_size, store.info.signal)
            self._weights = TokenWeights(Setting(run.config, order.tasks, store, accelerator, student))

    def take_step(self, step: int, batches: Sequence[Batch], *, diagnose: bool) -> StepDone:
        """Move the weights by one optimizer step, counted from 0, on this rank's micro-batches."""
        training = self._config.training
        learning_rate = scheduled_learning_rate(training, step)
        for group in self._optimizer.param_groups:  # first: DeepSpeed moves the weights inside the last backward
            group["lr"] = learning_rate
        forward = functools.partial(self._forward, diagnose=diagnose)
        work = StepWork(step, batches, self._forward, forward, functools.partial(self._backward, forward, batches))
        if self._weights is None:
            lambdas = [torch.zeros(len(batch.gold_T), device=batch.gold_T.device) for batch in batches]
            done = Backward(work.backward(lambdas))
        else:
            lambdas = self._weights.prepare(work)
            done = self._weights.backward(work, lambdas)
        limit = training.grad_clip or math.inf
        grad_norm = self._accelerator.clip_grad_norm_(self._student.parameters(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._weights is not None:
            self._weights.learn(work, done)
        lambdas = [lambda_T * done.scale for lambda_T in lambdas]
        return StepDone(done.losses, lambdas, learning_rate, grad_norm, done.metrics)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the λ strategy."""
        return self._weights.state_dict() if self._weights is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        if self._weights is not None:
            self._weights.load_state_dict(state)

    def _forward(self, batch: Batch, lambda_T: torch.Tensor, *, diagnose: bool = False) -> StepLoss:
        with_rest = self._kd_term is not None and self._kd_term.reads_rest
        logits = run_student(self._student, batch, with_argmax=diagnose, with_rest=with_rest)
        return step_loss(
            logits,
            batch.teacher,
            kd_term=self._kd_term,
            lambda_T=lambda_T,
            step_tokens=batch.step_tokens,
            weight_T=batch.weight_T,
        )

    def _backward(self, forward: Forward, batches: Sequence[Batch], lambdas: Sequence[torch.Tensor]) -> list[StepLoss]:
        """Forward and backward over the micro-batches; gradients of all ranks are summed in the last one."""
        losses = []
        # packed steps have different numbers of them
        self._accelerator.gradient_accumulation_steps, self._accelerator.step = len(batches), 0
        for batch, lambda_T in zip(batches, lambdas, strict=True):
            with self._accelerator.accumulate(self._student):
                loss = forward(batch, lambda_T)
                # the step's loss is a sum over ranks and accumulation steps, divided once by its answer
                # tokens; Accelerate and DDP would divide again by how many of either there are
                self._accelerator.backward(loss.total * (len(batches) * self._accelerator.num_processes))
            losses.append(loss.detached())
        return losses


def scheduled_learning_rate(training: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to zero; a pure function of the step, counted from 0."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.max_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
