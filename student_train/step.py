"""One optimizer step, from its micro-batches to new weights. Read `Stepper.take_step` from top to bottom."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from logitbank.configs.schema import ConfigError, TrainingConfig
from logitbank.storage import TeacherStore
from logitbank.student_train.data import Batch, BatchPlan, ExampleOrder, MicroBatches
from logitbank.student_train.losses.base import make_loss
from logitbank.student_train.losses.step_loss import StepLoss, step_loss
from logitbank.student_train.records import Run
from logitbank.student_train.strategies import gradients
from logitbank.student_train.strategies.weights import LambdaWeights


@dataclass(frozen=True)
class StepDone:
    """What the training log needs of a step; losses and λ per micro-batch of this rank, without graph."""

    losses: list[StepLoss]
    lambdas: list[torch.Tensor]
    learning_rate: float
    grad_norm: Any
    cosine: float | None


class Stepper:
    """The prepared student with its optimizer and λ strategy."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: Any,
        optimizer: Any,
        run: Run,
        store: TeacherStore,
        order: ExampleOrder,
    ) -> None:
        self._accelerator = accelerator
        self._student = student
        self._optimizer = optimizer
        self._config = run.config
        self._kd_term = make_loss(run.config.distillation, store.info.vocab_size, store.info.signal)
        self._tasks = len(order.tasks)
        self._weights: LambdaWeights | None = None
        parts: frozenset[str] = frozenset()
        if run.view is not None:
            self._weights = LambdaWeights(
                run.config.distillation,
                order.tasks,
                vocab_size=store.info.vocab_size,
                max_steps=run.config.training.max_steps,
                device=accelerator.device,
            )
            parts = self._weights.parts
        self._conflict = "gradient_conflict" in parts
        pattern = run.config.distillation.conflict_parameters
        self._subset = gradients.named_subset(student, pattern) if self._conflict and pattern else None
        self._validation = _ValidationBatches(run, store) if "meta" in parts else None

    def take_step(self, step: int, batches: Sequence[Batch], *, diagnose: bool) -> StepDone:
        """Move the weights by one optimizer step, counted from 0, on this rank's micro-batches."""
        training = self._config.training
        learning_rate = scheduled_learning_rate(training, step)
        for group in self._optimizer.param_groups:  # first: DeepSpeed moves the weights inside the last backward
            group["lr"] = learning_rate
        forward = functools.partial(self._forward, diagnose=diagnose)
        lambdas = self._lambdas(step, batches)
        cosine = None
        if self._conflict and self._subset is None:
            losses, cosine = gradients.backward_apart(self._accelerator, self._student, forward, batches, lambdas)
            lambdas = [lambda_T * max(0.0, cosine) for lambda_T in lambdas]
        else:
            if self._subset is not None:
                cosine = gradients.conflict_of_subset(
                    self._accelerator, self._student, forward, batches, lambdas, self._subset
                )
                lambdas = [lambda_T * max(0.0, cosine) for lambda_T in lambdas]
            losses = []
            for batch, lambda_T in zip(batches, lambdas, strict=True):
                with self._accelerator.accumulate(self._student):
                    loss = forward(batch, lambda_T)
                    # the step's loss is a sum over ranks and accumulation steps, divided once by its answer
                    # tokens; Accelerate and DDP would divide again by how many of either there are
                    self._accelerator.backward(loss.total * (len(batches) * self._accelerator.num_processes))
                losses.append(loss.detached())
        limit = training.grad_clip or math.inf
        grad_norm = self._accelerator.clip_grad_norm_(self._student.parameters(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._weights is not None and "loss_ratio" in self._weights.parts:
            self._weights.observe_losses(*gradients.reduced_means(self._accelerator, losses, batches))
        return StepDone(losses, lambdas, learning_rate, grad_norm, cosine)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the λ strategy."""
        return self._weights.state_dict() if self._weights is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        if self._weights is not None:
            self._weights.load_state_dict(state)

    def _forward(self, batch: Batch, lambda_T: torch.Tensor, *, diagnose: bool = False) -> StepLoss:
        logits = gradients.run_student(
            self._student, batch, with_argmax=diagnose, with_rest=batch.teacher is not None and self._kd_term.reads_rest
        )
        return step_loss(logits, batch.teacher, kd_term=self._kd_term, lambda_T=lambda_T, step_tokens=batch.step_tokens)

    def _lambdas(self, step: int, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """λ_t of every micro-batch, after what the strategy learns at this step."""
        if self._weights is None:
            return [torch.zeros(len(batch.gold_T), device=batch.gold_T.device) for batch in batches]
        if self._weights.needs_first_losses:
            first = gradients.mean_losses(self._accelerator, self._forward, batches)
            self._weights.observe_losses(*first)
        if self._validation is not None and step % self._config.distillation.meta_every == 0:
            held_out = self._validation.next(step // self._config.distillation.meta_every, self._accelerator.device)
            alignment = gradients.meta_alignment(
                self._accelerator, self._student, self._forward, batches, held_out, self._tasks
            )
            self._weights.update_meta(alignment)
        return [self._weights.token_weights(batch, step) for batch in batches]


def scheduled_learning_rate(training: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to zero; a pure function of the step, counted from 0."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.max_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class _ValidationBatches:
    """Held-out micro-batches for `meta`: tasks in turn, every rank the same ones."""

    def __init__(self, run: Run, store: TeacherStore) -> None:
        distillation, table = run.config.distillation, store.validation
        of_task = {
            task: np.flatnonzero(np.asarray(table.task) == store.info.tasks.index(task)) for task in run.config.tasks
        }
        of_task = {task: examples for task, examples in of_task.items() if len(examples)}
        if not of_task:
            raise ConfigError(
                f"distillation.strategy: meta needs held-out examples, and the store at {store.url} has none of "
                f"{', '.join(run.config.tasks)}; build it with data.max_validation_per_task above 0"
            )
        order = ExampleOrder(of_task, np.zeros(len(table), dtype=np.int64), run.config.seed)
        size = distillation.meta_batch_size
        micro = math.gcd(size, run.config.training.micro_batch_size)
        plan = BatchPlan(size, micro, world_size=1, rank=0)
        self._data = MicroBatches(lambda: store, order, plan, view=None, top_k=None, table="validation")
        self._per_step = plan.accumulation_steps

    def next(self, outer_step: int, device: torch.device) -> Iterator[Batch]:
        """The micro-batches of one outer step."""
        indices = itertools.count(outer_step * self._per_step)
        for index in itertools.islice(indices, self._per_step):
            yield self._data[index].to(device)
