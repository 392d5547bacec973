"""FSDP (version 2) and DeepSpeed as Accelerate's configuration asks for them: what it leaves open or gets wrong.

FSDP shards layers one by one, found by `StudentModule._no_split_modules`; embeddings, last norm and `lm_head` belong
to the root, which is whole from forward to backward: the head is applied in chunks, and again in backward.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from logitbank.configs.schema import ConfigError, TrainingConfig
from logitbank.student_train.split import BatchPlan

logger = logging.getLogger(__name__)

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_launcher() -> None:
    """Refuse what `accelerate launch` was told and cannot be done right.

    Raises:
        ConfigError: FSDP 1; FSDP's own activation checkpointing, which draws other dropout masks when it recomputes;
            DeepSpeed if it is not installed.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
            raise ConfigError(f"fsdp_config.fsdp_version: expected 2 in accelerate's configuration, got {version}")
        if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
            raise ConfigError(
                "fsdp_config.fsdp_activation_checkpointing: expected false; use training.gradient_checkpointing=true"
            )
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("distributed_type: DEEPSPEED needs the package deepspeed; pip install deepspeed")


def sharding_plugin(precision: str, training: TrainingConfig, plan: BatchPlan) -> dict[str, Any]:
    """What shards, by the name under which `Accelerator` takes it; nothing where the launcher asked for none.

    Every process reads the whole model, since `find_head` needs weights. FSDP keeps losses and the sums of gradients
    in float32, where Accelerate's own policy would round both to half precision.

    Args:
        precision: as `Accelerator(mixed_precision=…)`: "no", "bf16" or "fp16".
        training: gives DeepSpeed the gradient clipping, whatever its own file says.
        plan: likewise the sizes of batches.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        policy = MixedPrecisionPolicy(param_dtype=COMPUTE_DTYPES.get(precision), reduce_dtype=torch.float32)
        fsdp = FullyShardedDataParallelPlugin(
            fsdp_version=2, mixed_precision_policy=policy, cpu_ram_efficient_loading=False
        )
        return {"fsdp_plugin": fsdp}
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        deepspeed = DeepSpeedPlugin(zero3_init_flag=False)
        engine = deepspeed.deepspeed_config
        engine["train_micro_batch_size_per_gpu"] = plan.micro_batch_size
        engine["gradient_accumulation_steps"] = plan.accumulation_steps
        engine["gradient_clipping"] = training.grad_clip or 0.0
        engine["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True  # of any width, in fact
        return {"deepspeed_plugin": deepspeed}
    return {}


def shard_on_any_device(accelerator: Accelerator, plugin: Mapping[str, Any]) -> None:
    """Switch sharding on where Accelerate has not: it shards on GPUs only, and would silently run DDP on CPUs."""
    if accelerator.num_processes == 1 and not is_sharded(accelerator):
        return
    states = (accelerator.state, PartialState())
    if fsdp := plugin.get("fsdp_plugin"):
        accelerator.state.fsdp_plugin = fsdp
        for state in states:
            state.distributed_type = DistributedType.FSDP
    if deepspeed := plugin.get("deepspeed_plugin"):
        if accelerator.distributed_type != DistributedType.DEEPSPEED:
            deepspeed.set_mixed_precision(accelerator.mixed_precision)
            deepspeed.select(_from_accelerator_state=True)
        deepspeed.dschf = None  # while it lives, transformers loads models in pieces under ZeRO 3
        accelerator.state.deepspeed_plugins = deepspeed
        for state in states:
            state.distributed_type = DistributedType.DEEPSPEED


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds all parameters or all of the optimizer."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def chunk_tokens(accelerator: Accelerator, training: TrainingConfig) -> int:
    """How many answer tokens the head is applied to at once: under ZeRO 3 all of a micro-batch.

    ZeRO 3 gathers a module's weights at each call, all ranks together, and ranks have different numbers of chunks.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED or accelerator.state.deepspeed_plugin.zero_stage < 3:
        return training.loss_chunk_tokens
    if accelerator.is_main_process:
        logger.warning("warning: ZeRO 3 applies the head to all answer tokens of a micro-batch at once, not in chunks")
    return sys.maxsize


def whole_weights(accelerator: Accelerator, student: Any) -> dict[str, torch.Tensor]:
    """Weights by name, whole, on rank 0; with FSDP, nothing of what is frozen. Every rank calls this."""
    if accelerator.is_fsdp2:
        options = dataclasses.replace(WHOLE, ignore_frozen_params=True)
        weights: dict[str, Any] = get_model_state_dict(student, options=options)
    else:
        weights = dict(accelerator.get_state_dict(student) or {})
    first_name: dict[Any, str] = {}
    for name, parameter in accelerator.unwrap_model(student).named_parameters(remove_duplicate=False):
        if name in weights:  # tied weights were gathered twice, and would be written twice
            weights[name] = weights[first_name.setdefault(parameter, name)]
    return weights


def whole_optimizer_state(student: Any, optimizer: Any) -> dict[str, Any]:
    """State of the optimizer by parameter name, whole, on rank 0, sharded or not. Every rank calls this."""
    return get_optimizer_state_dict(student, optimizer.optimizer, options=WHOLE)


def load_optimizer_state(student: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Take up what `whole_optimizer_state` gave, at any number of processes; every rank has all of it."""
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(student, optimizer.optimizer, state, options=options)
    module = getattr(student, "module", student)  # inside DDP
    for name, parameter in module.named_parameters():
        if name not in state["state"]:  # had no gradient yet, so has no moments, where PyTorch fills in zeros
            optimizer.optimizer.state.pop(parameter, None)
