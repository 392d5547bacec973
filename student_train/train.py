"""One student, from the first step to the last. Read `train` from top to bottom."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env, set_seed

from logitbank.command import make_directory
from logitbank.configs import ConfigError
from logitbank.configs.schema import TrainingConfig
from logitbank.models.huggingface import load_tokenizer
from logitbank.storage import TeacherStore
from logitbank.student_train import checkpoints
from logitbank.student_train.batch import Batch, MicroBatches, cache_bytes, micro_batch_loader
from logitbank.student_train.checks import check_output, check_store_fits
from logitbank.student_train.module import StudentModule
from logitbank.student_train.order import BatchPlan, ExampleOrder, example_order
from logitbank.student_train.records import (
    Run,
    describe_request,
    describe_run,
    publish_log,
    publish_run,
    refuse_another_run,
    withdraw_later_rows,
)
from logitbank.student_train.sharding import (
    check_launcher,
    chunk_tokens,
    is_sharded,
    shard_on_any_device,
    sharding_plugin,
)
from logitbank.student_train.step import Stepper
from logitbank.student_train.strategies.combined import refuse_sharding
from logitbank.student_train.student import build_student
from logitbank.student_train.trackers import Trackers
from logitbank.student_train.training_log import TrainingLog

logger = logging.getLogger(__name__)


def train(run: Run) -> Path:
    """Train one student and return the directory of its final checkpoint.

    Every process of an `accelerate launch` calls this.

    Raises:
        ConfigError, StoreError: whatever the user can mend, before anything is written.
    """
    final = run.output / checkpoints.FINAL
    if check_output(run.output, resume=run.resume):
        earlier = json.loads((final / "training.json").read_text(encoding="utf-8"))
        refuse_another_run(earlier, describe_request(run), final)
        if PartialState(cpu=on_cpu()).is_main_process:
            publish_run(run, earlier)
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
    check_launcher()
    plan = split_batch(training)
    tokenizer = load_tokenizer(config.model)
    store = TeacherStore.open(run.store_url)
    check_store_fits(store, config, run.view, tokenizer)
    order = example_order(store, config)
    accelerator = make_accelerator(training, plan)
    if run.view is not None:
        refuse_sharding(accelerator, config.distillation.strategy)
    main = accelerator.is_main_process
    resume_from = checkpoints.latest_checkpoint(run.output) if run.resume else None
    start = checkpoints.checkpoint_step(resume_from) if resume_from is not None else 0
    about = describe_run(run, store, resume_from)

    set_seed(config.seed)  # the same adapter on every rank
    # what is sharded goes to its device a layer at a time: it may not fit whole
    model = build_student(config, accelerator.device, resume_from, stay_on_host=accelerator.is_fsdp2)
    student: Any = StudentModule(model, chunk_tokens=chunk_tokens(accelerator, training))
    optimizer: Any = torch.optim.AdamW(parameter_groups(student, training.weight_decay), training.learning_rate)
    if main:
        if not run.results.is_relative_to(run.output):
            make_directory("--results", run.results)  # not after the last step
        make_directory("--output", run.output)
        checkpoints.remove_partial(run.output)
        print_summary(run, store, order, plan, student, start, accelerator)
    student, optimizer = accelerator.prepare(student, optimizer)
    stepper = Stepper(accelerator, student, optimizer, run, store, order)
    set_seed(config.seed, device_specific=True)  # other dropout masks on every rank
    log = TrainingLog(
        accelerator,
        order.tasks,
        start,
        training.max_steps,
        every=training.logging_steps,
        has_teacher=run.view is not None,
        trackers=Trackers(training, run.output, about, start) if main else None,
    )
    seconds = 0.0
    if resume_from is not None:
        state = checkpoints.load_state(accelerator, student, optimizer, resume_from)
        stepper.load_state_dict(state["stepper"])
        log.load_state_dict(state["log"])
        seconds = state["seconds"]
        if main:
            withdraw_later_rows(run, about, start)
            publish_log(run, about, start, json.loads(state["log_rows"]))  # lost by a kill before it was written

    batches = iter(batch_loader(run, store, order, plan, accelerator, start))
    started = time.perf_counter() - seconds
    for step in range(start, training.max_steps):
        micro_batches = [next_batch(batches, log, accelerator.device) for _ in range(plan.accumulation_steps)]
        done = stepper.take_step(step, micro_batches, diagnose=log.due(step + 1))
        for batch, loss, lambda_T in zip(micro_batches, done.losses, done.lambdas, strict=True):
            log.add(batch, loss, lambda_T)
        log.end_step(step + 1, learning_rate=done.learning_rate, grad_norm=done.grad_norm, metrics=done.metrics)
        if (step + 1) % training.save_steps == 0 and step + 1 < training.max_steps:
            rows = log.take_rows()
            state = {
                "stepper": stepper.state_dict(),
                "log": log.state_dict(),
                "log_rows": json.dumps(rows),
                "seconds": time.perf_counter() - started,
            }
            target = run.output / f"checkpoint-{step + 1}"
            checkpoints.save_checkpoint(
                accelerator, student, optimizer, tokenizer, target, about | {"step": step + 1}, state
            )
            if main:
                publish_log(run, about, step + 1, rows)
                checkpoints.remove_old_checkpoints(run.output, training.save_total_limit)

    log.close()
    if main:
        publish_log(run, about, training.max_steps, log.take_rows())
    now = datetime.datetime.now(datetime.UTC).isoformat()
    about |= {"step": training.max_steps, "seconds": time.perf_counter() - started, "finished_at": now}
    checkpoints.save_checkpoint(accelerator, student, optimizer, tokenizer, final, about, state=None)
    if main:
        publish_run(run, about)
        logger.info("done: %s", final)


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
    logger.info(
        f"{plan.global_batch_size} examples a step: {plan.world_size} processes × {plan.accumulation_steps} "
        f"accumulation steps × {plan.micro_batch_size}{engine}; steps {start + 1} to {run.config.training.max_steps}"
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
    plugin = sharding_plugin(precision, training, plan)
    accelerator = Accelerator(
        mixed_precision=precision, cpu=on_cpu(), gradient_accumulation_plugin=accumulation, **plugin
    )
    shard_on_any_device(accelerator, plugin)
    return accelerator


def batch_loader(
    run: Run, store: TeacherStore, order: ExampleOrder, plan: BatchPlan, accelerator: Accelerator, start: int
) -> Any:
    """Micro-batches of this rank from optimizer step `start` on, prefetched."""
    training = run.config.training
    data = MicroBatches(
        functools.partial(TeacherStore.open, run.store_url, cache_bytes=cache_bytes(store.info, training.num_workers)),
        order,
        plan,
        view=run.view,
        top_k=run.config.distillation.n_top_logits,
        with_zeroshot=run.view is not None and run.config.distillation.gate == "fewshot_gain",
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
