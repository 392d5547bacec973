"""One student, from the first step to the last. Read `train` from top to bottom."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, parse_flag_from_env, set_seed

from configs import Config, ConfigError
from configs.models import load_tokenizer
from configs.schema import TrainingConfig
from storage import TeacherStore
from student_train import checkpoints
from student_train.checks import check_output, check_store_fits
from student_train.data import Batch, BatchPlan, ExampleOrder, MicroBatches, micro_batch_loader
from student_train.losses import step_loss
from student_train.metrics import TrainingLog
from student_train.module import StudentModule
from student_train.records import Run, describe_run, publish_log, publish_run
from student_train.strategies import LambdaWeights
from student_train.student import build_student

logger = logging.getLogger(__name__)


def train(run: Run) -> Path:
    """Train one student and return the directory of its final checkpoint.

    Every process of an `accelerate launch` calls this.

    Raises:
        ConfigError, StoreError: whatever the user can mend, before anything is written.
    """
    final = run.output / checkpoints.FINAL
    if check_output(run.output, resume=run.resume):
        if PartialState(cpu=on_cpu()).is_main_process:
            publish_run(run, json.loads((final / "training.json").read_text(encoding="utf-8")))
            logger.info("done already: %s", final)
        return final
    try:
        _train(run, final)
    finally:  # the next run in this process may want another precision or accumulation
        AcceleratorState._reset_state()
        GradientState._reset_state()
    return final


def _train(run: Run, final: Path) -> None:
    config, training = run.config, run.config.training
    plan = split_batch(training)
    tokenizer = load_tokenizer(config.model)
    store = TeacherStore.open(run.store_url)
    check_store_fits(store, config, run.view, tokenizer)
    order = example_order(store, config)
    accelerator = make_accelerator(training, plan)
    resume_from = checkpoints.latest_checkpoint(run.output) if run.resume else None
    start = checkpoints.checkpoint_step(resume_from) if resume_from is not None else 0
    about = describe_run(run, store, resume_from)
    if accelerator.is_main_process:
        run.output.mkdir(parents=True, exist_ok=True)
        checkpoints.remove_partial(run.output)

    set_seed(config.seed)  # the same adapter on every rank
    student: Any = StudentModule(build_student(config, resume_from), chunk_tokens=training.loss_chunk_tokens)
    optimizer: Any = torch.optim.AdamW(parameter_groups(student, training.weight_decay), training.learning_rate)
    if accelerator.is_main_process:
        print_summary(run, store, order, plan, student, start)
    student, optimizer = accelerator.prepare(student, optimizer)
    weights = LambdaWeights(config.distillation)
    set_seed(config.seed, device_specific=True)  # other dropout masks on every rank
    log = TrainingLog(accelerator, order.tasks, start, training.max_steps, has_teacher=run.view is not None)
    batches = iter(batch_loader(run, order, plan, accelerator, start))
    seconds_before = 0.0
    if resume_from is not None:
        state = checkpoints.load_state(resume_from, accelerator.process_index)
        optimizer.load_state_dict(state["optimizer"])
        seconds_before = state["seconds"]
        if accelerator.is_main_process:
            publish_log(run, about, start, json.loads(state["log_rows"]))

    started = time.perf_counter()
    for step in range(start, training.max_steps):
        learning_rate = scheduled_learning_rate(training, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(plan.accumulation_steps):
            batch = next_batch(batches, log, accelerator.device)
            with accelerator.accumulate(student):
                logits = student(
                    batch.input_ids_BL,
                    batch.attention_mask_BL,
                    batch.answer_index_T,
                    batch.gold_T,
                    batch.top_ids_TK,
                )
                lambda_T = weights.token_weights(batch, step)
                loss = step_loss(
                    logits,
                    batch.teacher,
                    kd_loss=config.distillation.loss,
                    lambda_T=lambda_T,
                    step_tokens=batch.step_tokens,
                )
                # the step's loss is a sum over ranks and accumulation steps, divided once by its answer
                # tokens; Accelerate and DDP would divide again by how many of either there are
                accelerator.backward(loss.total * (plan.accumulation_steps * plan.world_size))
            log.add(batch, loss, lambda_T)
        grad_norm = accelerator.clip_grad_norm_(student.parameters(), training.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        log.end_step(done, every=training.logging_steps, learning_rate=learning_rate, grad_norm=grad_norm)
        if done % training.save_steps == 0 and done < training.max_steps:
            rows = log.take_rows()
            state = {
                "optimizer": optimizer.state_dict(),
                "log_rows": json.dumps(rows),
                "seconds": seconds_before + time.perf_counter() - started,
            }
            target = run.output / f"checkpoint-{done}"
            checkpoints.save_checkpoint(accelerator, student, tokenizer, target, about | {"step": done}, state)
            if accelerator.is_main_process:
                publish_log(run, about, done, rows)

    log.close()
    if accelerator.is_main_process:
        publish_log(run, about, training.max_steps, log.take_rows())
    now = datetime.datetime.now(datetime.UTC).isoformat()
    about |= {"step": training.max_steps, "seconds": seconds_before + time.perf_counter() - started, "finished_at": now}
    checkpoints.save_checkpoint(accelerator, student, tokenizer, final, about, state=None)
    if accelerator.is_main_process:
        publish_run(run, about)
        logger.info("done: %s", final)


def print_summary(
    run: Run, store: TeacherStore, order: ExampleOrder, plan: BatchPlan, student: StudentModule, start: int
) -> None:
    """Say what is about to happen."""
    trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
    total = sum(p.numel() for p in student.parameters())
    top_k = run.config.distillation.n_top_logits or store.info.top_k
    teacher = "cross-entropy alone" if run.view is None else f"teacher view {run.view}, top {top_k} logits"
    counts = ", ".join(f"{task} {count:,}" for task, count in order.counts().items())
    logger.info(f"{run.config.model.name}: {trainable:,} of {total:,} parameters train; {teacher}")
    logger.info(f"examples: {counts}")
    logger.info(
        f"{plan.global_batch_size} examples a step: {plan.world_size} processes × {plan.accumulation_steps} "
        f"accumulation steps × {plan.micro_batch_size}; steps {start + 1} to {run.config.training.max_steps}"
    )


def on_cpu() -> bool:
    """Whether to train on the CPU. Accelerate has to be told, or launched processes would not join up."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def split_batch(training: TrainingConfig) -> BatchPlan:
    """This rank's part of every global batch.

    Raises:
        ConfigError: the global batch does not split into whole micro-batches over all processes.
    """
    state = PartialState(cpu=on_cpu())
    at_once = training.micro_batch_size * state.num_processes
    if training.global_batch_size % at_once:
        raise ConfigError(
            f"training.global_batch_size: expected a multiple of {at_once} (training.micro_batch_size "
            f"{training.micro_batch_size} × {state.num_processes} processes), got {training.global_batch_size}"
        )
    return BatchPlan(training.global_batch_size, training.micro_batch_size, state.num_processes, state.process_index)


def make_accelerator(training: TrainingConfig, plan: BatchPlan) -> Accelerator:
    """The engine, told how many micro-batches make a step; we bring our own data order."""
    accumulation = GradientAccumulationPlugin(num_steps=plan.accumulation_steps, sync_with_dataloader=False)
    precision = {"auto": "bf16" if torch.accelerator.is_available() else "no", "fp32": "no"}.get(
        training.precision, training.precision
    )
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu(), gradient_accumulation_plugin=accumulation)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = accelerator.state.deepspeed_plugin.deepspeed_config
        engine["train_micro_batch_size_per_gpu"] = plan.micro_batch_size
        engine["gradient_accumulation_steps"] = plan.accumulation_steps
        engine["gradient_clipping"] = training.grad_clip
    return accelerator


def example_order(store: TeacherStore, config: Config) -> ExampleOrder:
    """The order of this run: the configured tasks, at most `data.max_train_per_task` examples of each."""
    table = store.examples
    per_task = {
        task: np.flatnonzero(np.asarray(table.task) == store.info.tasks.index(task))[: config.data.max_train_per_task]
        for task in config.tasks
    }
    shard_of = np.asarray(table.answer_start) // store.info.shard_tokens
    return ExampleOrder(per_task, shard_of, config.seed)


def batch_loader(run: Run, order: ExampleOrder, plan: BatchPlan, accelerator: Accelerator, start: int) -> Any:
    """Micro-batches of this rank from optimizer step `start` on, prefetched."""
    training = run.config.training
    cache_bytes = (1 << 30) // max(1, training.num_workers)
    data = MicroBatches(
        functools.partial(TeacherStore.open, run.store_url, cache_bytes=cache_bytes),
        order,
        plan,
        view=run.view,
        top_k=run.config.distillation.n_top_logits,
    )
    return micro_batch_loader(
        data,
        start=start * plan.accumulation_steps,
        stop=training.max_steps * plan.accumulation_steps,
        num_workers=training.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def next_batch(batches: Iterator[Batch], log: TrainingLog, device: torch.device) -> Batch:
    """The next micro-batch on the device; the time spent waiting for it is logged."""
    asked = time.perf_counter()
    batch = next(batches)
    log.waited(time.perf_counter() - asked)
    return batch.to(device)


def parameter_groups(student: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; weight decay on matrices, not on biases and norms."""
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def scheduled_learning_rate(training: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to zero; a pure function of the step, counted from 0."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.max_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
