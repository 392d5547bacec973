"""Weights of fewer bits: what can be quantised, and int8 by bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from logitbank.configs.schema import ConfigError, ModelConfig
from logitbank.models.devices import default_device
from logitbank.models.huggingface import is_causal_lm, model_config, open_whole

METHODS = ("gptq", "int8")
GROUP_SIZES = (128, 64, 32, 16)  # tried in this order

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantization:
    """How a model is quantised.

    Attributes:
        method: one of `METHODS`.
        bits: of a weight, for `gptq`.
        group_size: weights of one row that share a scale, for `gptq`; None without.
        samples: rows that calibrate `gptq`; None without.
        store: URL of the label store whose rows calibrate and compare; None compares nothing.
        fallback: `int8`, to be used where llm-compressor is missing or refuses the model; None for an error.
    """

    method: str
    bits: int
    group_size: int | None
    samples: int | None
    store: str | None
    fallback: str | None


def linear_layers(model: ModelConfig) -> dict[str, int]:
    """Inputs of each linear layer that is quantised, by its name; no weights are loaded.

    The head of a language model and the pooler of an encoder stay as they are.
    """
    auto = AutoModelForCausalLM if is_causal_lm(model) else AutoModel
    with torch.device("meta"):
        empty = auto.from_config(model_config(model), trust_remote_code=model.trust_remote_code)
    head = empty.get_output_embeddings()
    return {
        name: module.in_features
        for name, module in empty.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "pooler" not in name
    }


def find_group_size(model: ModelConfig, asked: int | None) -> int:
    """The group size that is asked for; by default the largest of `GROUP_SIZES` that divides every layer's inputs.

    Raises:
        ConfigError: names the first layer whose inputs it does not divide; or there is no linear layer at all.
    """
    layers = linear_layers(model)
    if not layers:
        raise ConfigError(f"--quantize: {model.name} has no linear layer to quantise")
    fitting = [size for size in GROUP_SIZES if all(inputs % size == 0 for inputs in layers.values())]
    size = asked or (fitting or GROUP_SIZES)[0]
    for name, inputs in layers.items():
        if inputs % size:
            hint = f"; use --group-size {fitting[0]}" if fitting else ", or use --quantize int8"
            raise ConfigError(f"--group-size: expected a divisor of {inputs}, the inputs of {name}, got {size}{hint}")
    if asked is None and size != GROUP_SIZES[0]:
        logger.info("--group-size: %d, since %d does not divide every layer's inputs", size, GROUP_SIZES[0])
    return size


def check_unquantised(model: ModelConfig, option: str) -> None:
    """Refuse what is quantised already: nothing is averaged, merged or quantised again.

    Args:
        model: a base, or a whole model.
        option: that names it, for the message.

    Raises:
        ConfigError: says how it is quantised.
    """
    found = getattr(model_config(model), "quantization_config", None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
        raise ConfigError(f"{option}: {model.name} is already quantised ({method}); give the original model")


def require_int8() -> None:
    """Check that int8 can be had here.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("--quantize int8: bitsandbytes is not installed; pip install 'logitbank[quantization]'")


def quantize_int8(model: ModelConfig, target: Path) -> None:
    """Write a model with linear layers of 8 bits, each row of weights with its own scale (arXiv:2208.07339)."""
    open_whole(model, device=default_device(), load_in_8bit=True).save_pretrained(target)
