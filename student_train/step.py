"""One optimizer step, from its micro-batches to new weights. Read `Stepper.take_step` from top to bottom."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from logitbank.storage import TeacherStore
from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.base import Loss, make_loss
from logitbank.student_train.losses.step_loss import StepLoss, step_loss
from logitbank.student_train.module import run_student
from logitbank.student_train.optimizer import Optimizer
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
        optimizer: Optimizer,
        run: Run,
        store: TeacherStore,
        order: ExampleOrder,
    ) -> None:
        self._student = student
        self._optimizer = optimizer
        self._kd_term: Loss | None = None
        self._weights: TokenWeights | None = None
        self._ce_weight = run.config.distillation.ce_weight
        if run.view is not None:
            self._kd_term = make_loss(run.config.distillation, store.info.vocab_size, store.info.signal)
            self._weights = TokenWeights(Setting(run.config, order.tasks, store, accelerator, student))

    def take_step(self, step: int, batches: Sequence[Batch], *, diagnose: bool) -> StepDone:
        """Move the weights by one optimizer step, counted from 0, on this rank's micro-batches."""
        learning_rate = self._optimizer.begin(step)
        forward = functools.partial(self._forward, diagnose=diagnose)
        work = StepWork(step, batches, self._forward, forward, functools.partial(self._backward, forward, batches))
        if self._weights is None:
            lambdas = [torch.zeros(len(batch.gold_T), device=batch.gold_T.device) for batch in batches]
            done = Backward(work.backward(lambdas))
        else:
            lambdas = self._weights.prepare(work)
            done = self._weights.backward(work, lambdas)
        grad_norm = self._optimizer.move()
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
            ce_weight=self._ce_weight,
        )

    def _backward(self, forward: Forward, batches: Sequence[Batch], lambdas: Sequence[torch.Tensor]) -> list[StepLoss]:
        return self._optimizer.backward(batches, lambda number, batch: forward(batch, lambdas[number]))
