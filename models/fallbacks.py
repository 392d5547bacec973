"""Which of several models fits into the memory that is free: `model.fallbacks`."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from logitbank.configs.schema import ALL_LINEAR, Config, ConfigError, ModelConfig
from logitbank.models.huggingface import DTYPES, model_config
from logitbank.models.pair_head import most_tokens
from logitbank.models.precision import opened_dtype

logger = logging.getLogger(__name__)

ADAM_BYTES = 12  # a trained parameter: its gradient and Adam's two moments, float32
SPARE = 1.1  # over the sum of all parts: fragments, buffers, the device's own context
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """An estimate of what a model takes, in bytes.

    Attributes:
        weights: all parameters, in the format that they are opened in.
        trained: gradients and optimizer state of the parameters that train, their float32 copies included.
        activations: of one batch.
    """

    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        """All of it and a tenth more."""
        return math.ceil(SPARE * (self.weights + self.trained + self.activations))


def choose_model(
    config: Config,
    device: torch.device,
    *,
    training: bool,
    earlier: str | None = None,
    free: int | None = None,
) -> ModelConfig:
    """The first of `model.name` and `model.fallbacks` that fits into free memory; says which in one line.

    Weights, from the models' configurations alone, are counted in the format that they are opened in. Sharding is not
    taken into account: each device is asked to hold the whole model.

    Args:
        config: `model`, and what decides memory: `lora`, `training` and `data`, or `teacher`.
        device: where the model goes.
        training: whether it is trained; otherwise it scores batches of `teacher.batch_tokens`.
        earlier: the model that an earlier run of the same took: it is kept, whatever is free now.
        free: bytes; default `free_memory(device)`.

    Returns:
        `config.model` where it names no fallbacks, unread.

    Raises:
        ConfigError: none fits, or a model whose configuration cannot be opened.
    """
    names = [config.model.name, *config.model.fallbacks]
    if len(names) == 1:
        return config.model
    if earlier in names:
        return _named(config.model, earlier)
    free = free_memory(device) if free is None else free
    too_large: list[str] = []
    for name in names:
        model = _named(config.model, name)
        needed = memory_needed(config, model, device, training=training).total
        if needed <= free:
            instead = f"; {', '.join(too_large)}" if too_large else ""
            logger.info(
                "model.fallbacks: using %s, which needs %s%s; %s free on %s",
                *(name, _gib(needed), instead, _gib(free), device),
            )
            return model
        too_large.append(f"{name} needs {_gib(needed)}")
    smaller = "lora.load_in_4bit or training.micro_batch_size" if training else "teacher.batch_tokens"
    raise ConfigError(
        f"model.fallbacks: expected a model that fits in the {_gib(free)} free on {device}, got "
        f"{', '.join(too_large)}; "
        f"add a smaller one, or change {smaller}"
    )


def memory_needed(config: Config, model: ModelConfig, device: torch.device, *, training: bool) -> MemoryNeed:
    """Estimate a model's memory from its configuration; no weights are read.

    A layer keeps about 10 D + 4 I values of a token (D its width, I that of its MLP: inputs of norms, projections
    and gates), cf. arXiv:2205.05198. Training keeps those of all layers, with gradient checkpointing those of one
    and each layer's input; scoring those of one.
    """
    described = model_config(model)
    skeleton = _skeleton(described, model, config.head)
    quantised_bits = _quantised_bits(config, described, training=training)
    dtype = _dtype(config, described, device, training=training)
    weights = _weights_bytes(skeleton, dtype.itemsize, quantised_bits)
    trained = 0
    if training:
        parameters = _trained_parameters(skeleton, config)
        copies = 4 if config.training.use_lora else 0  # an adapter; all weights are float32 as they are
        trained = parameters * (ADAM_BYTES + copies)
    return MemoryNeed(weights, trained, _activation_bytes(config, described, dtype, training=training))


def free_memory(device: torch.device) -> int:
    """Bytes free on a device, for each process that a launcher started on this machine where it is the CPU."""
    if device.type != "cpu":
        return int(torch.accelerator.get_memory_info(device)[0])
    available = psutil.virtual_memory().available
    try:  # of a container or a Slurm job
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            available = min(available, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _named(model: ModelConfig, name: str) -> ModelConfig:
    """The model itself, or one of its fallbacks, which has its newest revision."""
    return model if name == model.name else dataclasses.replace(model, name=name, revision=None)


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f} GiB"


def _skeleton(described: Any, model: ModelConfig, head: str) -> nn.Module:
    """The model without memory for its weights."""
    auto = AutoModel if head == "classifier" else AutoModelForCausalLM
    with torch.device("meta"):
        skeleton: nn.Module = auto.from_config(described, trust_remote_code=model.trust_remote_code)
    return skeleton


def _quantised_bits(config: Config, described: Any, *, training: bool) -> int | None:
    """Bits of a weight in linear layers that are quantised as they are loaded, or were before."""
    if (before := getattr(described, "quantization_config", None)) is not None:
        before = before if isinstance(before, dict) else before.to_dict()
        groups = before.get("config_groups", {}).values()  # of compressed-tensors
        bits = [group["weights"]["num_bits"] for group in groups] or [before.get("bits")]
        return max(bits) if all(bits) else 8 if before.get("load_in_8bit") else 4
    if training:
        return 4 if config.training.use_lora and config.lora.load_in_4bit else None
    return 4 if config.teacher.load_in_4bit else 8 if config.teacher.load_in_8bit else None


def _dtype(config: Config, described: Any, device: torch.device, *, training: bool) -> torch.dtype:
    if training and not config.training.use_lora:
        return torch.float32
    name = config.model.dtype if training else config.teacher.dtype or config.model.dtype
    dtype = DTYPES.get(opened_dtype("model.dtype", name, device))
    return dtype or getattr(described, "dtype", None) or torch.float32


def _weights_bytes(skeleton: nn.Module, dtype_bytes: int, quantised_bits: int | None) -> int:
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    if quantised_bits is None:
        return parameters * dtype_bytes
    linear = sum(module.weight.numel() for module in _linear_layers(skeleton).values())
    return (parameters - linear) * dtype_bytes + linear * quantised_bits // 8


def _linear_layers(skeleton: nn.Module) -> dict[str, Any]:
    """Linear layers by name, the `lm_head` aside: it is neither quantised nor adapted."""
    head = getattr(skeleton, "get_output_embeddings", lambda: None)()
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    found = skeleton.named_modules()
    return {name: module for name, module in found if isinstance(module, kinds) and module is not head}


def _trained_parameters(skeleton: nn.Module, config: Config) -> int:
    if not config.training.use_lora:
        return sum(parameter.numel() for parameter in skeleton.parameters())
    targets = config.lora.target_modules
    adapted = (
        module.weight
        for name, module in _linear_layers(skeleton).items()
        if targets == [ALL_LINEAR] or any(name == target or name.endswith(f".{target}") for target in targets)
    )
    return config.lora.r * sum(sum(weight.shape) for weight in adapted)


def _activation_bytes(config: Config, described: Any, dtype: torch.dtype, *, training: bool) -> int:
    text = described.get_text_config()
    width, layers = int(text.hidden_size), int(text.num_hidden_layers)
    layer = 10 * width + 4 * int(getattr(text, "intermediate_size", None) or 4 * width)
    if not training:
        return config.teacher.batch_tokens * (2 * width + layer) * dtype.itemsize
    tokens = config.training.micro_batch_size * most_tokens(config)
    if config.training.packing:
        tokens = config.training.packed_tokens
    kept = layers * width + layer if config.training.gradient_checkpointing else layers * layer
    half = config.training.precision in ("bf16", "fp16") or dtype.itemsize == 2
    return tokens * kept * (2 if half else 4)
