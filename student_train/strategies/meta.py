"""`meta`: one λ per task, learned from held-out examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from logitbank.configs.schema import Config, ConfigError
from logitbank.storage import TeacherStore
from logitbank.student_train.batch import Batch, MicroBatches
from logitbank.student_train.losses.step_loss import cross_entropy
from logitbank.student_train.module import run_student
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.split import BatchPlan, Indices, Split
from logitbank.student_train.strategies.base import Backward, Setting, StepWork, Strategy
from logitbank.student_train.strategies.gradients import accumulate, dot, named_subset, zeros_like
from logitbank.student_train.strategies.per_task import require_values


class Meta(Strategy):
    """The base is λ_i = sigmoid(a_i) of each task i, and a_i ← a_i + η ⟨∇val, ∇KD_i⟩ every `meta_every` steps.

    A first-order bilevel step (DARTS, Liu et al. 2019, arXiv:1806.09055): a student step moves θ by −α λ_i ∇KD_i,
    so the held-out loss falls with λ_i where the two gradients agree. ∇KD_i is the gradient that λ_i multiplies:
    of Σ_t w_t f_t KD_t / N over the answer tokens of task i, w_t as in the loss, f_t all that schedule, gate and the
    strategy's other parts weigh token t with at this step. A step's alignment moves the λ of the steps after it.
    """

    sets_base = True
    compares_gradients = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        distillation = setting.config.distillation
        start = [distillation.lambda_distill] * len(setting.tasks)
        if distillation.meta_init == "per_task":
            start = [distillation.lambda_per_task[task] for task in setting.tasks]
        self._logit = torch.tensor(start, dtype=torch.float32, device=setting.accelerator.device).logit()
        self._held_out = HeldOut(setting.config, setting.store)
        self._alignment: torch.Tensor | None = None

    @classmethod
    def check(cls, config: Config) -> None:
        """λ starts inside (0, 1), and no other part sets it."""
        distillation = config.distillation
        if "per_task" in distillation.strategy.split("*"):
            raise ConfigError(
                "distillation.strategy: per_task and meta both set λ per task; use meta with "
                "distillation.meta_init=per_task"
            )
        uniform = distillation.meta_init == "uniform"
        if not uniform:
            require_values(config)
        for task in config.tasks:
            key, value = "lambda_distill", distillation.lambda_distill
            if not uniform:
                key, value = f"lambda_per_task.{task}", distillation.lambda_per_task[task]
            if not 0 < value < 1:
                raise ConfigError(f"distillation.{key}: expected a number above 0 and below 1 for meta, got {value:g}")

    def prepare(self, work: StepWork, factors: Callable[[Batch], torch.Tensor]) -> None:
        """Measure the alignment, where the step is one of those."""
        every = self.setting.config.distillation.meta_every
        if work.step % every == 0:
            held_out = self._held_out.batches(work.step // every, self.setting.accelerator.device)
            self._alignment = self.alignment(work, factors, held_out)

    def base(self) -> torch.Tensor:
        """(tasks,) float32, between 0 and 1."""
        return self._logit.sigmoid()

    def learn(self, work: StepWork, done: Backward) -> None:
        """One outer step, where the alignment was measured."""
        if self._alignment is not None:
            self.move(self._alignment * done.scale)
            self._alignment = None

    def move(self, alignment: torch.Tensor) -> None:
        """logit λ_i ← logit λ_i − η · (−⟨∇val, ∇KD_i⟩).

        Args:
            alignment: ⟨∇val, ∇KD_i⟩ of every task i, (tasks,).
        """
        self._logit = self._logit + self.setting.config.distillation.meta_learning_rate * alignment.to(self._logit)

    def alignment(
        self, work: StepWork, factors: Callable[[Batch], torch.Tensor], held_out: Iterable[Batch]
    ) -> torch.Tensor:
        """⟨∇val, ∇KD_i⟩ of every task i, (tasks,) float64.

        ∇val is the gradient of the mean CE over the held-out micro-batches, which every rank runs in full; ∇KD_i
        that of the step, one backward pass for each task of each micro-batch. No gradient is left behind.
        """
        accelerator, student = self.setting.accelerator, self.setting.student
        parameters = named_subset(student, None)
        of_validation = zeros_like(parameters)
        for batch in held_out:
            with accelerator.no_sync(student):
                logits = run_student(student, batch)
            accumulate(of_validation, batch.step_mean(cross_entropy(logits)), parameters)
        alignment = torch.zeros(len(self.setting.tasks), dtype=torch.float64, device=of_validation[0].device)
        for batch in work.batches:
            factor_T = factors(batch)
            with accelerator.no_sync(student):
                loss = work.measure(batch, factor_T)
            weighted_T = factor_T * loss.kd_T
            present = batch.task_T.unique().tolist()
            for task in present:
                term = batch.step_mean(torch.where(batch.task_T == task, weighted_T, 0.0))
                of_kd = torch.autograd.grad(term, parameters, retain_graph=task != present[-1], allow_unused=True)
                pairs = [(v, kd.to(v)) for v, kd in zip(of_validation, of_kd, strict=True) if kd is not None]
                alignment[task] += dot([v for v, _ in pairs], [kd for _, kd in pairs])
        total: torch.Tensor = accelerator.reduce(alignment, "sum")
        return total

    def state_dict(self) -> dict[str, Any]:
        """The logits of λ."""
        return {"per_task": self._logit.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the logits of λ."""
        self._logit = state["per_task"].to(self._logit.device)


class HeldOut:
    """Held-out micro-batches: tasks in turn, every rank the same ones."""

    def __init__(self, config: Config, store: TeacherStore) -> None:
        """Raises ConfigError if the store has no held-out examples of the configured tasks."""
        table = store.validation
        of_task = {
            task: np.flatnonzero(np.asarray(table.task) == store.info.tasks.index(task)) for task in config.tasks
        }
        of_task = {task: examples for task, examples in of_task.items() if len(examples)}
        if not of_task:
            raise ConfigError(
                f"distillation.strategy: meta needs held-out examples, but the store at {store.url} has none for "
                f"{', '.join(config.tasks)}; build it with data.max_validation_per_task above 0"
            )
        order = ExampleOrder(of_task, np.zeros(len(table), dtype=np.int64), config.seed)
        size = config.distillation.meta_batch_size
        training = config.training
        packed_tokens = training.packed_tokens if training.packing else None
        plan = BatchPlan(size, math.gcd(size, training.micro_batch_size), 1, 0, packed_tokens)
        self._split = Split(order, plan, table.input_length)
        weight = training.loss_weight
        self._data = MicroBatches(
            lambda: store, order, plan, view=None, top_k=None, table="validation", loss_weight=weight
        )

    def batches(self, outer_step: int, device: torch.device) -> Iterator[Batch]:
        """The micro-batches of one outer step."""
        for index in Indices(self._split, outer_step, outer_step + 1):
            yield self._data[index].to(device)
