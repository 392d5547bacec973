"""One student that answers in tokens, from the first step to the last. Read `Training.take_step`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from logitbank.models.huggingface import load_tokenizer
from logitbank.storage import TeacherStore
from logitbank.student_train import checkpoints
from logitbank.student_train.batch import Batch
from logitbank.student_train.checks import check_store_fits, warn_of_answers
from logitbank.student_train.loop import TrainingLoop, train_with
from logitbank.student_train.module import StudentModule
from logitbank.student_train.order import ExampleOrder, example_order
from logitbank.student_train.records import Run, describe_run
from logitbank.student_train.setup import batch_loader, make_accelerator, split_batch
from logitbank.student_train.sharding import chunk_tokens, is_sharded
from logitbank.student_train.split import BatchPlan, Split
from logitbank.student_train.step import Stepper
from logitbank.student_train.strategies.combined import refuse_sharding
from logitbank.student_train.student import build_student
from logitbank.student_train.trackers import start_trackers
from logitbank.student_train.training_log import TrainingLog
from logitbank.tasks.prompts import PromptEncoder

logger = logging.getLogger(__name__)


def train(run: Run) -> Path:
    """Train one student from a teacher store; see `train_with`."""
    return train_with(run, Training)


class Training(TrainingLoop):
    """A run from the point where everything fits together: student, optimizer, λ strategy, log."""

    log: TrainingLog

    def __init__(self, run: Run) -> None:
        """Open the store, build the student, take up the newest checkpoint of the same run if there is one."""
        config = run.config
        self._plan = split_batch(config.training)
        tokenizer = load_tokenizer(config.model)
        encoder = PromptEncoder(tokenizer)
        self._store = TeacherStore.open(run.store_url)
        check_store_fits(self._store, config, run.view, encoder)
        self._order = example_order(self._store, config)
        run = run.of_steps(sum(self._order.counts().values()))
        self._split = Split(self._order, self._plan, self._store.examples.input_length)
        accelerator = make_accelerator(config.training, self._plan)
        if run.view is not None:
            refuse_sharding(accelerator, config.distillation.strategy)
        if accelerator.is_main_process:
            warn_of_answers(self._store, config)
        super().__init__(run, accelerator, describe_run(run, self._store, encoder.template_hash), tokenizer)
        self._build()
        self.take_up()

    def run(self) -> None:
        """See `TrainingLoop.run`."""
        self._batches = batch_loader(
            self.run_, self._store, self._order, self._plan, self._split, self.accelerator, self.start
        )
        try:
            super().run()
        finally:
            self._batches.close()  # ends its threads

    def take_step(self, step: int) -> bool:
        """See `TrainingLoop.take_step`."""
        micro_batches = [self._next() for _ in self._split.micro_batches(step)]
        done = self._stepper.take_step(step, micro_batches, diagnose=self.log.due(step + 1))
        for batch, loss, lambda_T in zip(micro_batches, done.losses, done.lambdas, strict=True):
            self.log.add(batch, loss, lambda_T)
        self.log.end_step(step + 1, learning_rate=done.learning_rate, grad_norm=done.grad_norm, metrics=done.metrics)
        return False

    def save_model(self, weights: Mapping[str, torch.Tensor], directory: Path) -> None:
        """See `TrainingLoop.save_model`."""
        student = self.accelerator.unwrap_model(self.student)
        checkpoints.save_weights(student.model, checkpoints.inside("model", weights), directory)

    def state_dict(self) -> dict[str, Any]:
        """See `TrainingLoop.state_dict`."""
        return {"stepper": self._stepper.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `TrainingLoop.load_state_dict`."""
        self._stepper.load_state_dict(state["stepper"])

    def _build(self) -> None:
        run, config, accelerator = self.run_, self.run_.config, self.accelerator
        set_seed(config.seed)  # the same adapter on every rank
        # what is sharded goes to its device a layer at a time: it may not fit whole
        model = build_student(config, accelerator.device, self.resume_from, stay_on_host=accelerator.is_fsdp2)
        chunk = chunk_tokens(accelerator, config.training)
        student = StudentModule(model, chunk_tokens=chunk, packing=config.training.packing)
        self.prepare(
            student,
            lambda: print_summary(run, self._store, self._order, self._plan, student, self.start, accelerator),
        )
        self._stepper = Stepper(accelerator, self.student, self.optimizer, run, self._store, self._order)
        set_seed(config.seed, device_specific=True)  # other dropout masks on every rank
        self.log = TrainingLog(
            accelerator,
            self._order.tasks,
            self.start,
            config.training.max_steps,
            every=config.training.logging_steps,
            has_teacher=run.view is not None,
            ce_weight=config.distillation.ce_weight,
            trackers=start_trackers(config.training, run.output, self.record, self.start),
        )

    def _next(self) -> Batch:
        """The next micro-batch on the device."""
        with self.waiting():
            batch = next(self._batches)
        return batch.to(self.accelerator.device)


def print_summary(
    run: Run,
    store: TeacherStore,
    order: ExampleOrder,
    plan: BatchPlan,
    student: StudentModule,
    start: int,
    accelerator: Accelerator,
) -> None:
    """Say what is about to happen."""
    trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
    total = sum(p.numel() for p in student.parameters())
    top_k = run.config.distillation.n_top_logits or store.info.top_k
    draws = f" and {store.info.draws} draws ({store.info.signal})" if store.info.draws else ""
    teacher = "cross-entropy alone" if run.view is None else f"teacher view {run.view}, top {top_k} logits{draws}"
    engine = f", sharded by {accelerator.distributed_type.value}" if is_sharded(accelerator) else ""
    counts = ", ".join(f"{task} {count:,}" for task, count in order.counts().items())
    logger.info(f"{run.config.model.name}: {trainable:,} of {total:,} parameters train; {teacher}")
    logger.info(f"examples: {counts}")
    training = run.config.training
    if training.epochs is not None:
        seen = order.epochs_in(training.max_steps, plan.global_batch_size)
        times = ", ".join(f"{task} {count:.3g}" for task, count in seen.items())
        logger.info(f"training.epochs {training.epochs:g}: {training.max_steps:,} steps; passes: {times}")
    if run.view is not None and store.info.untaught:
        ids = ", ".join(map(str, store.info.untaught))
        logger.info(f"no teacher term at answer token {ids}: the teacher ends a turn with a different token")
    micro_batches = f"{plan.accumulation_steps} accumulation steps × {plan.micro_batch_size}"
    if plan.packed_tokens is not None:
        micro_batches = f"packed rows of at most {plan.packed_tokens:,} tokens"
    processes = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
    logger.info(
        f"{plan.global_batch_size} examples a step: {processes} × {micro_batches}{engine}; "
        f"steps {start + 1} to {training.max_steps}"
    )
