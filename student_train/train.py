"""One student, from the first step to the last. Read `Training.run` from top to bottom."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed

from logitbank.command import make_directory
from logitbank.experiment import TrainingRecord
from logitbank.models.huggingface import load_tokenizer
from logitbank.storage import TeacherStore
from logitbank.student_train import checkpoints
from logitbank.student_train.batch import Batch
from logitbank.student_train.checks import check_output, check_store_fits
from logitbank.student_train.interrupts import StopSignals, stopped
from logitbank.student_train.module import StudentModule
from logitbank.student_train.order import ExampleOrder, example_order
from logitbank.student_train.records import (
    Run,
    describe_run,
    publish_log,
    publish_run,
    read_record,
    refuse_another_run,
    withdraw_later_rows,
)
from logitbank.student_train.setup import batch_loader, make_accelerator, on_cpu, parameter_groups, split_batch
from logitbank.student_train.sharding import check_launcher, chunk_tokens, is_sharded
from logitbank.student_train.split import BatchPlan, Split
from logitbank.student_train.step import Stepper
from logitbank.student_train.strategies.combined import refuse_sharding
from logitbank.student_train.student import build_student
from logitbank.student_train.trackers import start_trackers
from logitbank.student_train.training_log import TrainingLog
from logitbank.tasks.prompts import PromptEncoder

logger = logging.getLogger(__name__)


def train(run: Run) -> Path:
    """Train one student and return the directory of its final checkpoint.

    An unfinished run of the same settings in `run.output` is resumed, a finished one left as it is. Every process
    of an `accelerate launch` calls this.

    Raises:
        ConfigError, StoreError: whatever the user can mend, before anything is written; a run of other settings in
            `run.output`.
        TrainingError: the loss is no longer finite.
        OutputError: a checkpoint that cannot be written.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is saved; its message says so. On all processes
            but the main one, SystemExit.
    """
    check_output(run.output)
    final = run.output / checkpoints.FINAL
    if final.is_dir():
        earlier = read_record(final)
        refuse_another_run(earlier, run, final)
        if PartialState(cpu=on_cpu()).is_main_process:
            publish_run(run, earlier)
            logger.info("done already: %s", final)
        return final
    try:
        check_launcher()
        Training(run).run()
    finally:  # the next run in this process may want another precision or accumulation
        AcceleratorState._reset_state()
        GradientState._reset_state()
    return final


class Training:
    """A run from the point where everything fits together: student, optimizer, λ strategy, log."""

    def __init__(self, run: Run) -> None:
        """Open the store, build the student, take up the newest checkpoint of the same run where there is one."""
        config = run.config
        self._plan = split_batch(config.training)
        self._tokenizer = load_tokenizer(config.model)
        encoder = PromptEncoder(self._tokenizer)
        self._store = TeacherStore.open(run.store_url)
        check_store_fits(self._store, config, run.view, encoder)
        self._order = example_order(self._store, config)
        self._run = run = run.of_steps(self._order)
        self._split = Split(self._order, self._plan, self._store.examples.input_length)
        self._accelerator = make_accelerator(config.training, self._plan)
        if run.view is not None:
            refuse_sharding(self._accelerator, config.distillation.strategy)
        self._record = describe_run(run, self._store, encoder.template_hash)
        resume_from = checkpoints.latest_checkpoint(run.output)
        if resume_from is not None:
            earlier = read_record(resume_from)
            refuse_another_run(earlier, run, resume_from, self._record)
            self._record = dataclasses.replace(self._record, run=earlier.run)
        self._start = checkpoints.checkpoint_step(resume_from) if resume_from is not None else 0
        self._seconds = 0.0
        self._build(resume_from)
        if resume_from is not None:
            self._take_up(resume_from)

    def run(self) -> None:
        """Every step from the first that is missing to the last, then the final checkpoint."""
        run, training, accelerator = self._run, self._run.config.training, self._accelerator
        batches = iter(batch_loader(run, self._store, self._order, self._plan, self._split, accelerator, self._start))
        self._started = time.perf_counter() - self._seconds
        try:
            with self._log, StopSignals(accelerator) as signals:
                for step in range(self._start, training.max_steps):
                    micro_batches = [self._next(batches) for _ in self._split.micro_batches(step)]
                    done = self._stepper.take_step(step, micro_batches, diagnose=self._log.due(step + 1))
                    for batch, loss, lambda_T in zip(micro_batches, done.losses, done.lambdas, strict=True):
                        self._log.add(batch, loss, lambda_T)
                    self._log.end_step(step + 1, done)
                    asked = signals.asked()
                    if step + 1 < training.max_steps:
                        if asked or (step + 1) % training.save_steps == 0:
                            self._save(step + 1)
                        if asked:
                            raise stopped(asked, step + 1, says=accelerator.is_main_process)
        finally:
            del batches  # ends its workers, which no signal does
        self._finish()

    def _build(self, resume_from: Path | None) -> None:
        run, config, accelerator = self._run, self._run.config, self._accelerator
        set_seed(config.seed)  # the same adapter on every rank
        # what is sharded goes to its device a layer at a time: it may not fit whole
        model = build_student(config, accelerator.device, resume_from, stay_on_host=accelerator.is_fsdp2)
        chunk = chunk_tokens(accelerator, config.training)
        student = StudentModule(model, chunk_tokens=chunk, packing=config.training.packing)
        groups = parameter_groups(student, config.training.weight_decay)
        optimizer = torch.optim.AdamW(groups, config.training.learning_rate)
        if accelerator.is_main_process:
            if not run.results.is_relative_to(run.output):
                make_directory("--results", run.results)  # not after the last step
            make_directory("--output", run.output)
            checkpoints.remove_partial(run.output)
            print_summary(run, self._store, self._order, self._plan, student, self._start, accelerator)
        self._student: torch.nn.Module
        self._student, self._optimizer = accelerator.prepare(student, optimizer)
        self._stepper = Stepper(accelerator, self._student, self._optimizer, run, self._store, self._order)
        set_seed(config.seed, device_specific=True)  # other dropout masks on every rank
        self._log = TrainingLog(
            accelerator,
            self._order.tasks,
            self._start,
            config.training.max_steps,
            every=config.training.logging_steps,
            has_teacher=run.view is not None,
            trackers=start_trackers(config.training, run.output, self._record, self._start),
        )

    def _take_up(self, checkpoint: Path) -> None:
        state = checkpoints.load_state(self._accelerator, self._student, self._optimizer, checkpoint)
        self._stepper.load_state_dict(state["stepper"])
        self._log.load_state_dict(state["log"])
        self._seconds = state["seconds"]
        if self._accelerator.is_main_process:
            withdraw_later_rows(self._run, self._record, self._start)
            # lost by a kill before it was written
            publish_log(self._run, self._record, self._start, json.loads(state["log_rows"]))

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch on the device; the time spent waiting for it is logged."""
        asked = time.perf_counter()
        batch = next(batches)
        self._log.waited(time.perf_counter() - asked)
        return batch.to(self._accelerator.device)

    def _save(self, step: int) -> None:
        """A checkpoint to resume from, then the log rows up to it."""
        rows = self._log.take_rows()
        state: dict[str, Any] = {
            "stepper": self._stepper.state_dict(),
            "log": self._log.state_dict(),
            "log_rows": json.dumps(rows),
            "seconds": time.perf_counter() - self._started,
        }
        self._write(f"checkpoint-{step}", dataclasses.replace(self._record, step=step), state)
        if self._accelerator.is_main_process:
            publish_log(self._run, self._record, step, rows)
            checkpoints.remove_old_checkpoints(self._run.output, self._run.config.training.save_total_limit)

    def _finish(self) -> None:
        """The last log rows, the final checkpoint, the run's row."""
        steps, main = self._run.config.training.max_steps, self._accelerator.is_main_process
        if main:
            publish_log(self._run, self._record, steps, self._log.take_rows())
        record = dataclasses.replace(
            self._record,
            step=steps,
            seconds=time.perf_counter() - self._started,
            finished_at=datetime.datetime.now(datetime.UTC).isoformat(),
        )
        self._write(checkpoints.FINAL, record, None)
        if main:
            publish_run(self._run, record)
            logger.info("done: %s", self._run.output / checkpoints.FINAL)

    def _write(self, name: str, record: TrainingRecord, state: dict[str, Any] | None) -> None:
        checkpoints.save_checkpoint(
            self._accelerator,
            self._student,
            self._optimizer,
            self._tokenizer,
            self._run.output / name,
            record,
            state,
        )


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
        logger.info(f"training.epochs {training.epochs:g}: {training.max_steps:,} steps; times through: {times}")
    if run.view is not None and store.info.untaught:
        ids = ", ".join(map(str, store.info.untaught))
        logger.info(f"no teacher term where the answer token is {ids}: the teacher ends a turn with another token")
    micro_batches = f"{plan.accumulation_steps} accumulation steps × {plan.micro_batch_size}"
    if plan.packed_tokens is not None:
        micro_batches = f"packed rows of at most {plan.packed_tokens:,} tokens"
    processes = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
    logger.info(
        f"{plan.global_batch_size} examples a step: {processes} × {micro_batches}{engine}; "
        f"steps {start + 1} to {training.max_steps}"
    )
