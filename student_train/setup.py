"""What a run is made of before its first step: the engine, its share of the batches, the optimizer's groups."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env

from logitbank.configs import ConfigError
from logitbank.configs.schema import TrainingConfig
from logitbank.models.precision import has_fast_bfloat16
from logitbank.storage import TeacherStore
from logitbank.student_train.batch import Batch, MicroBatches, cache_bytes, micro_batch_loader, window_bytes
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.records import Run
from logitbank.student_train.sharding import shard_on_any_device, sharding_plugin
from logitbank.student_train.split import BatchPlan, Indices, Split

logger = logging.getLogger(__name__)


def on_cpu() -> bool:
    """Whether to train on the CPU. Accelerate has to be told, or launched processes would not join up."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def on_main_process() -> bool:
    """Whether this is the process that speaks for all of a run."""
    return bool(PartialState(cpu=on_cpu()).is_main_process)


def split_batch(training: TrainingConfig) -> BatchPlan:
    """This rank's part of every global batch.

    Raises:
        ConfigError: the global batch does not split into whole micro-batches over all processes, or with packing
            not into equal numbers of examples; packing with DeepSpeed.
    """
    if training.packing and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "training.packing: DeepSpeed needs the same number of micro-batches in every step, but packed steps "
            "differ; use FSDP or DDP, or training.packing=false"
        )
    state = PartialState(cpu=on_cpu())
    if training.packing:
        if training.global_batch_size % state.num_processes:
            raise ConfigError(
                f"training.global_batch_size: expected a multiple of {state.num_processes} (processes), got "
                f"{training.global_batch_size}"
            )
        sizes = (training.global_batch_size, training.micro_batch_size)
        return BatchPlan(*sizes, state.num_processes, state.process_index, training.packed_tokens)
    at_once = training.micro_batch_size * state.num_processes
    if training.global_batch_size % at_once:
        raise ConfigError(
            f"training.global_batch_size: expected a multiple of {at_once} (training.micro_batch_size "
            f"{training.micro_batch_size} × {state.num_processes} processes), got {training.global_batch_size}"
        )
    return BatchPlan(training.global_batch_size, training.micro_batch_size, state.num_processes, state.process_index)


def make_accelerator(training: TrainingConfig, plan: BatchPlan) -> Accelerator:
    """The engine; we bring our own data order, and `Stepper` says how many micro-batches each step has."""
    steps = plan.accumulation_steps if plan.packed_tokens is None else 1
    accumulation = GradientAccumulationPlugin(num_steps=steps, sync_with_dataloader=False)
    precision = {"auto": "bf16" if torch.accelerator.is_available() else "no", "fp32": "no"}.get(
        training.precision, training.precision
    )
    if precision == "bf16" and on_cpu() and not has_fast_bfloat16(torch.device("cpu")):
        precision = "no"
        if PartialState(cpu=True).is_main_process:
            logger.info("training.precision: this CPU has no fast bfloat16, so training computes in float32")
    plugin = sharding_plugin(precision, training, plan)
    accelerator = Accelerator(
        mixed_precision=precision, cpu=on_cpu(), gradient_accumulation_plugin=accumulation, **plugin
    )
    shard_on_any_device(accelerator, plugin)
    return accelerator


def batch_loader(
    run: Run,
    store: TeacherStore,
    order: ExampleOrder,
    plan: BatchPlan,
    split: Split,
    accelerator: Accelerator,
    start: int,
) -> Generator[Batch]:
    """Micro-batches of this rank from optimizer step `start` on, read ahead; close it to end its threads."""
    training = run.config.training
    if run.view is not None and accelerator.is_main_process:
        _say_what_is_decoded_again(store, plan)
    data = MicroBatches(
        lambda: store,
        order,
        plan,
        view=run.view,
        top_k=run.config.distillation.n_top_logits,
        with_zeroshot=run.view is not None and run.config.distillation.gate == "fewshot_gain",
        loss_weight=training.loss_weight,
    )
    return micro_batch_loader(
        data,
        Indices(split, start, training.max_steps),
        num_workers=training.num_workers,
        pin_for=accelerator.device if accelerator.device.type == "cuda" else None,
    )


def _say_what_is_decoded_again(store: TeacherStore, plan: BatchPlan) -> None:
    """The shards of a window are decoded once where their rows fit into memory."""
    window = window_bytes(store.info) / plan.world_size  # a rank keeps its own rows
    if window > (kept := cache_bytes(store.info)):
        logger.info(
            f"store.shard_tokens {store.info.shard_tokens:,}: one window of shards takes {window / 1e9:.1f} GB of "
            f"memory, {kept / 1e9:.1f} GB are kept; each shard is decoded about {1 + window / kept:.0f} times a pass"
        )


def parameter_groups(student: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; weight decay on matrices, not on biases and norms."""
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
