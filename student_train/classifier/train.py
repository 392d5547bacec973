"""One student of comparisons, from the first step to the last. Read `PairTraining.take_step`."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed

from logitbank.configs import Config
from logitbank.errors import ConfigError, TaskError
from logitbank.experiment import TrainingRecord
from logitbank.models.classifier import PairClassifier, open_classifier
from logitbank.models.huggingface import load_tokenizer, require_quantization
from logitbank.models.pair_head import HeadSettings
from logitbank.preference import SeenPrompts
from logitbank.storage import LabelStore
from logitbank.student_train import checkpoints
from logitbank.student_train.classifier.batch import PairRows, TrainingRows
from logitbank.student_train.classifier.checks import check_length, check_options, check_store_fits
from logitbank.student_train.classifier.log import TASKS, PairLog
from logitbank.student_train.classifier.losses import PairTerms, pair_terms
from logitbank.student_train.classifier.order import PairOrder
from logitbank.student_train.classifier.rows import (
    scorers_fingerprint,
    selection_of,
    swaps,
    teachers_of,
    training_rows,
    training_set,
    views_fingerprint,
)
from logitbank.student_train.classifier.selection import SelectionRows, Standing, selection_log_loss
from logitbank.student_train.loop import TrainingLoop, train_with
from logitbank.student_train.records import Run, new_record
from logitbank.student_train.setup import make_accelerator, on_main_process, split_batch
from logitbank.student_train.split import BatchPlan
from logitbank.student_train.student import add_adapter, checkpoint_activations
from logitbank.student_train.trackers import start_trackers
from logitbank.tasks.preference import PairPacker
from logitbank.tasks.prompts import PromptEncoder

logger = logging.getLogger(__name__)


def train_classifier(run: Run) -> Path:
    """Train one student from a label store; see `train_with`. `run.rows` says from which rows."""
    return train_with(run, PairTraining)


class PairLoss(NamedTuple):
    """What a micro-batch adds to the step's loss, with its logits, (B, 3), and the terms of its rows."""

    total: torch.Tensor
    logits_BC: torch.Tensor
    terms: PairTerms

    def detached(self) -> PairLoss:
        """The same numbers without their graph."""
        terms = PairTerms(*(term_B.detach() for term_B in self.terms))
        return PairLoss(self.total.detach(), self.logits_BC.detach(), terms)


class PairTraining(TrainingLoop):
    """A run from the point where everything fits together: rows, student, log, standing."""

    log: PairLog

    def __init__(self, run: Run) -> None:
        """Open the store, pack its rows, build the student, take up the newest checkpoint if there is one."""
        config = run.config
        check_options(run)
        self._plan = split_batch(config.training)
        store = LabelStore.open(run.store_url)
        check_store_fits(store, run)
        tokenizer = load_tokenizer(config.model)
        settings = HeadSettings.of(config, hidden_size=0)
        check_length(config, settings.max_tokens)
        packer = _packer(tokenizer, settings)
        main = on_main_process()
        self._rows = training_rows(store, run, packer, shows_progress=main)
        self._selection: SelectionRows | None = None
        if config.training.eval_steps is not None:
            self._selection = selection_of(store, packer, shows_progress=main)
        self._standing = Standing()
        self._stopped_early = False
        run = run.of_steps(len(self._rows))
        self._order = PairOrder(swaps(self._rows, config.data.swap), self._plan.global_batch_size, config.seed)
        super().__init__(run, make_accelerator(config.training, self._plan), _record(run, store, tokenizer), tokenizer)
        self._seen = _seen(config, self._rows, self._selection)
        self._build()
        self.take_up()

    def take_step(self, step: int) -> bool:
        """See `TrainingLoop.take_step`."""
        with self.waiting():
            batches = [self._rows.batch(visits) for visits in self._micro_batches(step)]
        batches = [batch.to(self.accelerator.device) for batch in batches]
        learning_rate = self.optimizer.begin(step)
        losses = self.optimizer.backward(batches, self._loss)
        grad_norm = self.optimizer.move()
        for batch, loss in zip(batches, losses, strict=True):
            self.log.add(batch, loss.logits_BC, loss.terms)
        self._stopped_early = self._evaluate(step + 1)
        self.log.end_step(step + 1, learning_rate=learning_rate, grad_norm=grad_norm, last=self._stopped_early)
        return self._stopped_early

    def save_model(self, weights: Mapping[str, torch.Tensor], directory: Path) -> None:
        """See `TrainingLoop.save_model`."""
        student: Any = self.accelerator.unwrap_model(self.student)
        checkpoints.save_weights(student.backbone, checkpoints.inside("backbone", weights), directory)
        student.save_head(directory)
        self._seen.write(directory)

    def state_dict(self) -> dict[str, Any]:
        """See `TrainingLoop.state_dict`."""
        return {"standing": self._standing.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `TrainingLoop.load_state_dict`."""
        self._standing = Standing(**state["standing"])
        self._note_standing()

    def final_record(self) -> dict[str, Any]:
        """See `TrainingLoop.final_record`."""
        return {"stopped_early": self._stopped_early}

    def _micro_batches(self, step: int) -> list[list[Any]]:
        """This rank's rows of a step, in micro-batches of similar length."""
        visits = self._order.step(step)
        lengths = [int(self._rows.packed.lengths[visit.row]) for visit in visits]
        return [[visits[position] for position in group] for group in self._plan.micro_batches(lengths)]

    def _loss(self, number: int, batch: PairRows) -> PairLoss:
        distillation, training = self.run_.config.distillation, self.run_.config.training
        logits_BC = self.student(batch.pairs)
        terms = pair_terms(
            logits_BC,
            batch.target_BC,
            batch.teacher_BC,
            batch.taught_B,
            alpha=distillation.alpha,
            temperature=distillation.temperature,
            mse_weight=distillation.mse_weight,
            label_smoothing=training.label_smoothing,
        )
        return PairLoss(terms.loss_B.sum() / training.global_batch_size, logits_BC, terms)

    def _evaluate(self, step: int) -> bool:
        """Score the selection part where that is due, and keep the best student; whether to stop."""
        training = self.run_.config.training
        if self._selection is None or training.eval_steps is None:
            return False
        if step % training.eval_steps and step != training.max_steps:
            return False
        started = time.perf_counter()
        budget = self.run_.config.evaluation.batch_tokens
        log_loss = selection_log_loss(self.student, self._selection, self.accelerator, budget)
        self._standing = self._standing.after(step, log_loss)
        self._note_standing()
        self.log.show(step, "selection_log_loss", log_loss)
        if self.accelerator.is_main_process:
            best = "the best so far" if self._standing.best_step == step else f"best {self._standing.best_log_loss:.4f}"
            logger.info(f"step {step}: selection log loss {log_loss:.4f}, {best}")
        if self._standing.best_step == step:
            self.write_checkpoint(checkpoints.BEST, dataclasses.replace(self.record, step=step))
        self.log.paused(time.perf_counter() - started)
        enough = training.patience is not None and self._standing.worse >= training.patience
        if enough and self.accelerator.is_main_process:
            logger.info(f"training.patience: no improvement since step {self._standing.best_step}; stopping")
        return enough

    def _note_standing(self) -> None:
        """The record of every checkpoint holds the state of the run."""
        standing = self._standing
        if standing.best_step is not None:
            self.record = dataclasses.replace(
                self.record, best_step=standing.best_step, best_log_loss=standing.best_log_loss
            )

    def _build(self) -> None:
        config = self.run_.config
        set_seed(config.seed)  # the same adapter on every rank
        student = build_classifier(config, self.accelerator.device, self.resume_from)
        self.prepare(
            student, lambda: print_summary(self.run_, self._rows, self._order, self._plan, student, self.start)
        )
        set_seed(config.seed, device_specific=True)  # other dropout masks on every rank
        self.log = PairLog(
            self.accelerator,
            TASKS,
            self.start,
            config.training.max_steps,
            every=config.training.logging_steps,
            trackers=start_trackers(config.training, self.run_.output, self.record, self.start),
        )


def build_classifier(config: Config, device: torch.device, resume_from: Path | None = None) -> PairClassifier:
    """The student in training mode; which weights train, and in what format, is as `build_student` says.

    Raises:
        ConfigError: no such model, target modules that it lacks, or 4 bits without bitsandbytes.
    """
    lora = config.training.use_lora
    if config.lora.load_in_4bit:
        require_quantization("lora.load_in_4bit")
    classifier = open_classifier(
        config,
        device=device,
        checkpoint=resume_from,
        load_in_4bit=config.lora.load_in_4bit,
        new_head=resume_from is None,
        trainable=True,
        dtype=None if lora else "float32",
    )
    if lora and resume_from is None:
        task_type = "FEATURE_EXTRACTION" if classifier.letters is None else "CAUSAL_LM"
        classifier.backbone = add_adapter(classifier.backbone, config, task_type=task_type)
    checkpoint_activations(classifier.backbone, config)
    return classifier.train()


def _packer(tokenizer: Any, settings: HeadSettings) -> PairPacker:
    try:
        return PairPacker(tokenizer, max_tokens=settings.max_tokens, keep_turns=settings.keep_turns, head=settings.head)
    except TaskError as error:
        raise ConfigError(str(error).replace("max_tokens", "data.max_student_tokens", 1)) from None


def _record(run: Run, store: LabelStore, tokenizer: Any) -> TrainingRecord:
    return new_record(
        run,
        taught_by=teachers_of(store, run),
        store_fingerprint=store.info.fingerprint,
        view_fingerprint=views_fingerprint(store, run),
        scorers=scorers_fingerprint(store, run),
        # only letters are asked for by a chat template
        template=PromptEncoder(tokenizer).template_hash if run.config.head == "letters" else None,
        training_set=training_set(store, run),
    )


def _seen(config: Config, rows: TrainingRows, selection: SelectionRows | None) -> SeenPrompts:
    """What the student will have seen, its base model's prompts included."""
    own = SeenPrompts.of(rows.prompt_key_N, () if selection is None else selection.prompt_key_M)
    return own.union(SeenPrompts.read(Path(config.model.name).expanduser()))


def print_summary(
    run: Run, rows: TrainingRows, order: PairOrder, plan: BatchPlan, student: PairClassifier, start: int
) -> None:
    """Say what is about to happen."""
    training, config = run.config.training, run.config
    trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
    total = sum(p.numel() for p in student.parameters())
    taught = f"teacher views {run.view}" if run.view is not None else "cross-entropy alone"
    head = f"{config.model.pooling} pooling" if student.letters is None else "letters"
    logger.info(f"{config.model.name}, {head}: {trainable:,} of {total:,} parameters train; {taught}")
    fold = "" if run.held_out_fold is None else f", fold {run.held_out_fold} left out"
    external = int(rows.external_N.sum())
    logger.info(
        f"rows: {len(rows) - external:,} of the store{fold}, {external:,} external; {int(rows.taught_N.sum()):,} with "
        f"teacher logits; {rows.packed.cut:,} cut to {student.settings.max_tokens:,} tokens"
    )
    logger.info(f"{training.max_steps:,} steps; times through the rows: {order.epochs_in(training.max_steps):.3g}")
    processes = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
    logger.info(
        f"{plan.global_batch_size} rows a step: {processes} × {plan.accumulation_steps} accumulation steps × "
        f"{plan.micro_batch_size}; steps {start + 1} to {training.max_steps}"
    )
