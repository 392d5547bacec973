"""Building the student: base model, LoRA adapter or full fine-tuning, gradient checkpointing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import peft
import torch

from logitbank.configs.schema import Config, ConfigError
from logitbank.models.huggingface import load_causal_lm, require_quantization


def build_student(
    config: Config, device: torch.device, resume_from: Path | None = None, *, stay_on_host: bool = False
) -> Any:
    """The model to train, in training mode.

    With LoRA the base keeps `model.dtype` and is frozen, the adapter is float32; where the device has no fast
    bfloat16, a bfloat16 base is opened in float32. Full fine-tuning
    trains float32 weights whatever the checkpoint's dtype: bfloat16 would round most updates away;
    `training.precision` still computes in lower precision.

    Args:
        config: `model`, `lora` and `training` are used.
        device: where to train.
        resume_from: a checkpoint directory to take the trained weights from.
        stay_on_host: leave the weights in host memory (quantised ones never do): they are about to be sharded.

    Raises:
        ConfigError: no such model, target modules that it lacks, or 4 bits without CUDA or bitsandbytes.
    """
    if not config.training.use_lora:
        source = config.model if resume_from is None else dataclasses.replace(config.model, name=str(resume_from))
        model = load_causal_lm(source, dtype="float32", device=device, stay_on_host=stay_on_host)
    else:
        if config.lora.load_in_4bit:
            require_quantization("lora.load_in_4bit", device)
        base = load_causal_lm(
            config.model,
            device=device,
            load_in_4bit=config.lora.load_in_4bit,
            stay_on_host=stay_on_host,
        )
        if resume_from is not None:
            model = peft.PeftModel.from_pretrained(base, resume_from, is_trainable=True)
        else:
            model = _add_adapter(base, config)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if config.training.use_lora:
            # after enabling: frozen embeddings would otherwise cut every checkpointed layer off
            model.enable_input_require_grads()
    return model.train()


def _add_adapter(base: Any, config: Config) -> Any:
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.target_modules),
        bias="none",
    )
    try:
        return peft.get_peft_model(base, lora)
    except ValueError as error:
        modules = ", ".join(config.lora.target_modules)
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ConfigError(
            f"lora.target_modules: {modules} do not fit {type(base).__name__}: {reason}; "
            "name this architecture's linear layers, or set training.use_lora=false"
        ) from error
