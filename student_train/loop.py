"""A run from its first missing step to its last, whatever kind of student it trains. Read `TrainingLoop.run`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object

from logitbank.command import make_directory
from logitbank.experiment import TrainingRecord
from logitbank.models.devices import local_device
from logitbank.models.fallbacks import choose_model, free_memory
from logitbank.student_train import checkpoints
from logitbank.student_train.checks import check_output
from logitbank.student_train.interrupts import StopSignals, stopped
from logitbank.student_train.optimizer import Optimizer
from logitbank.student_train.records import (
    Run,
    publish_log,
    publish_run,
    read_record,
    refuse_another_run,
    withdraw_later_rows,
)
from logitbank.student_train.setup import on_cpu, on_main_process, parameter_groups
from logitbank.student_train.sharding import check_launcher
from logitbank.student_train.step_log import StepLog

logger = logging.getLogger(__name__)


def train_with(run: Run, make: Callable[[Run], TrainingLoop]) -> Path:
    """Train one student and return the directory of its final checkpoint.

    An unfinished run of the same settings in `run.output` is resumed, a finished one left as it is. Every process
    of an `accelerate launch` calls this.

    Args:
        run: what to train.
        make: opens everything that the run needs.

    Raises:
        ConfigError, StoreError: anything that the user can fix, before anything is written; a run of other settings in
            `run.output`.
        TrainingError: the loss is no longer finite.
        OutputError: a checkpoint that cannot be written.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is saved; its message says so. On all processes
            but the main one, SystemExit.
    """
    check_output(run.output)
    run = _with_model_that_fits(run)
    final = run.output / checkpoints.FINAL
    if final.is_dir():
        earlier = read_record(final)
        refuse_another_run(earlier, run, final)
        if on_main_process():
            publish_run(run, earlier)
            logger.info("done already: %s", final)
        return final
    try:
        check_launcher()
        make(run).run()
    finally:  # the next run in this process may use another precision or accumulation
        AcceleratorState._reset_state()
        GradientState._reset_state()
    return final


def _with_model_that_fits(run: Run) -> Run:
    """The run with the first of its model and that model's fallbacks that fits on every device.

    Raises:
        ConfigError: none does.
    """
    if not run.config.model.fallbacks:
        return run
    final = run.output / checkpoints.FINAL
    before = final if final.is_dir() else checkpoints.latest_checkpoint(run.output)
    earlier = None if before is None else read_record(before).model
    device = torch.device("cpu") if on_cpu() else local_device(os.environ)
    on_main_process()  # joins the processes up
    free = min(gather_object([free_memory(device)]))
    model = choose_model(run.config, device, training=True, earlier=earlier, free=free)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, model=model))


class TrainingLoop(ABC):
    """A run from the point where everything fits together. Subclasses build the student and say what a step is.

    A subclass sets `log` and calls `prepare` and `take_up` when it is made.

    Attributes:
        run_: what to train.
        accelerator: of the run.
        record: what the run says of itself.
        resume_from: the newest checkpoint of the same run, or None.
        start: the first step that is missing.
        student: the prepared student.
        optimizer: its optimizer.
        log: of its steps.
    """

    student: torch.nn.Module
    optimizer: Optimizer
    log: StepLog

    def __init__(self, run: Run, accelerator: Accelerator, record: TrainingRecord, tokenizer: Any) -> None:
        """Find the newest checkpoint of the run.

        Raises:
            ConfigError: it is of another run.
        """
        self.run_ = run
        self.accelerator = accelerator
        self.record = record
        self._tokenizer = tokenizer
        self._seconds = 0.0
        self.resume_from = checkpoints.latest_checkpoint(run.output)
        self.start = 0
        if self.resume_from is not None:
            earlier = read_record(self.resume_from)
            refuse_another_run(earlier, run, self.resume_from, record)
            self.record = dataclasses.replace(record, run=earlier.run)
            self.start = checkpoints.checkpoint_step(self.resume_from)

    @abstractmethod
    def take_step(self, step: int) -> bool:
        """One optimizer step, counted from 0, and its share of the log; whether it should be the last."""

    @abstractmethod
    def save_model(self, weights: Mapping[str, torch.Tensor], directory: Path) -> None:
        """Write the model of an unwrapped student; the main process alone calls this.

        Args:
            weights: all of the student's, by the names that they have in it.
            directory: where they go.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside weights, optimizer and log; tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""

    def final_record(self) -> Mapping[str, Any]:
        """Further fields of the record that the final checkpoint gets."""
        return {}

    def run(self) -> None:
        """Every step from the first that is missing to the last, then the final checkpoint."""
        training = self.run_.config.training
        self._started = time.perf_counter() - self._seconds
        step = self.start
        with self.log, StopSignals(self.accelerator) as signals:
            for step in range(self.start, training.max_steps):
                last = self.take_step(step)
                asked = signals.asked()
                if last:
                    break
                if step + 1 < training.max_steps:
                    if asked or (step + 1) % training.save_steps == 0:
                        self._save(step + 1)
                    if asked:
                        raise stopped(asked, step + 1, says=self.accelerator.is_main_process)
        self._finish(step + 1)

    def prepare(self, student: torch.nn.Module, summary: Callable[[], None]) -> None:
        """Make the optimizer and the directories, print the summary, and hand both to Accelerate."""
        run, training = self.run_, self.run_.config.training
        optimizer = torch.optim.AdamW(parameter_groups(student, training.weight_decay), training.learning_rate)
        if self.accelerator.is_main_process:
            if not run.results.is_relative_to(run.output):
                make_directory("--results", run.results)  # not after the last step
            make_directory("--output", run.output)
            checkpoints.remove_partial(run.output)
            summary()
        self.student, self._prepared_optimizer = self.accelerator.prepare(student, optimizer)
        self.optimizer = Optimizer(self.accelerator, self.student, self._prepared_optimizer, training)

    def take_up(self) -> None:
        """Take up the checkpoint that is resumed, if there is one."""
        if self.resume_from is None:
            return
        state = checkpoints.load_state(self.accelerator, self.student, self._prepared_optimizer, self.resume_from)
        self.load_state_dict(state)
        self.log.load_state_dict(state["log"])
        self._seconds = state["seconds"]
        if self.accelerator.is_main_process:
            withdraw_later_rows(self.run_, self.record, self.start)
            # lost by a kill before it was written
            publish_log(self.run_, self.record, self.start, json.loads(state["log_rows"]))

    def write_checkpoint(self, name: str, record: TrainingRecord, state: dict[str, Any] | None = None) -> None:
        """Write `OUTPUT/NAME`, to be resumed from where it has a state; every rank calls this."""
        checkpoints.save_checkpoint(
            self.accelerator,
            self.student,
            self._prepared_optimizer,
            self._tokenizer,
            self.run_.output / name,
            record,
            state,
            self.save_model,
        )

    @contextlib.contextmanager
    def waiting(self) -> Any:
        """Logs the time within as spent waiting for data."""
        asked = time.perf_counter()
        yield
        self.log.waited(time.perf_counter() - asked)

    def _save(self, step: int) -> None:
        """A checkpoint to resume from, then the log rows up to it."""
        rows = self.log.take_rows()
        state: dict[str, Any] = {
            **self.state_dict(),
            "log": self.log.state_dict(),
            "log_rows": json.dumps(rows),
            "seconds": time.perf_counter() - self._started,
        }
        self.write_checkpoint(f"checkpoint-{step}", dataclasses.replace(self.record, step=step), state)
        if self.accelerator.is_main_process:
            publish_log(self.run_, self.record, step, rows)
            checkpoints.remove_old_checkpoints(self.run_.output, self.run_.config.training.save_total_limit)

    def _finish(self, steps: int) -> None:
        """The last log rows, the final checkpoint, the run's row."""
        main = self.accelerator.is_main_process
        if main:
            publish_log(self.run_, self.record, steps, self.log.take_rows())
        record = dataclasses.replace(
            self.record,
            step=steps,
            seconds=time.perf_counter() - self._started,
            finished_at=datetime.datetime.now(datetime.UTC).isoformat(),
            **self.final_record(),
        )
        self.write_checkpoint(checkpoints.FINAL, record)
        if main:
            publish_run(self.run_, record)
            logger.info("done: %s", self.run_.output / checkpoints.FINAL)
