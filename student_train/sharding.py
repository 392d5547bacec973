"""FSDP (version 2) as Accelerate's configuration asks for it: what Accelerate leaves open, or gets wrong for us.

Layers are sharded one by one, found by `StudentModule._no_split_modules`; embeddings, last norm and `lm_head` belong
to the root, which is whole from forward to backward: the head is applied in chunks, and again in backward.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from configs.schema import ConfigError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def asks_for_fsdp() -> bool:
    """Whether `accelerate launch` was told to shard."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def fsdp_plugin(precision: str) -> FullyShardedDataParallelPlugin | None:
    """The plugin of the launcher's configuration, None where that asks for none.

    Losses and the sums of gradients stay float32 (Accelerate's own policy would round both to half precision), and
    every process reads the model: `find_head` needs weights.

    Args:
        precision: as `Accelerator(mixed_precision=…)`: "no", "bf16" or "fp16".

    Raises:
        ConfigError: FSDP 1, or its own activation checkpointing, which draws other dropout masks when it recomputes.
    """
    if not asks_for_fsdp():
        return None
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ConfigError(f"fsdp_config.fsdp_version: expected 2, got {version}; set it in accelerate's configuration")
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigError("fsdp_config.fsdp_activation_checkpointing: use training.gradient_checkpointing=true instead")
    policy = MixedPrecisionPolicy(param_dtype=COMPUTE_DTYPES.get(precision), reduce_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, mixed_precision_policy=policy, cpu_ram_efficient_loading=False
    )


def shard_on_any_device(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """Switch FSDP on where Accelerate has not: it knows FSDP on GPUs only, and would run DDP on CPUs without a word."""
    if plugin is not None and accelerator.num_processes > 1:
        for state in (accelerator.state, PartialState()):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds all parameters or all of the optimizer."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def whole_weights(accelerator: Accelerator, student: Any) -> dict[str, torch.Tensor]:
    """Weights by name, whole, on rank 0; of what is frozen and sharded, nothing. Every rank calls this."""
    if not accelerator.is_fsdp2:
        return dict(accelerator.get_state_dict(student))
    weights: dict[str, Any] = get_model_state_dict(
        student, options=dataclasses.replace(WHOLE, ignore_frozen_params=True)
    )
    first_name: dict[Any, str] = {}
    for name, parameter in student.named_parameters(remove_duplicate=False):
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
        if name not in state["state"]:  # had no gradient yet, so has no moments, where PyTorch has made up zeros
            optimizer.optimizer.state.pop(parameter, None)
