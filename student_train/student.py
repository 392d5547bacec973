"""Building the student: base model, LoRA adapter or full fine-tuning, gradient checkpointing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from logitbank.configs.schema import ALL_LINEAR, Config, ConfigError
from logitbank.experiment import TrainingRecord, is_same_model
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
        resume_from: a checkpoint directory to take the trained weights from; None for `training.init_from`, or the
            base model where that is null.
        stay_on_host: leave the weights in host memory (quantised ones never do): they are about to be sharded.

    Raises:
        ConfigError: no such model, target modules that it lacks, or 4 bits without bitsandbytes.
    """
    if resume_from is None:
        resume_from = initial_weights(config)
    if not config.training.use_lora:
        source = config.model if resume_from is None else dataclasses.replace(config.model, name=str(resume_from))
        model = load_causal_lm(source, dtype="float32", device=device, stay_on_host=stay_on_host)
    else:
        if config.lora.load_in_4bit:
            require_quantization("lora.load_in_4bit")
        base = load_causal_lm(
            config.model,
            device=device,
            load_in_4bit=config.lora.load_in_4bit,
            stay_on_host=stay_on_host,
        )
        if resume_from is not None:
            model = peft.PeftModel.from_pretrained(base, resume_from, is_trainable=True)
        else:
            model = add_adapter(base, config, task_type="CAUSAL_LM")
    checkpoint_activations(model, config)
    return model.train()


def initial_weights(config: Config) -> Path | None:
    """The checkpoint that `training.init_from` names; None if a run begins with the base model.

    Raises:
        ConfigError: no such directory, an adapter where a whole model is trained or the other way round, or a
            checkpoint of another model or of another size of adapter.
    """
    if config.training.init_from is None:
        return None
    path = Path(config.training.init_from)
    wanted, what = ("adapter_config.json", "an adapter") if config.training.use_lora else ("config.json", "a model")
    if not (path / wanted).is_file():
        raise ConfigError(
            f"training.init_from: expected the directory of {what} (training.use_lora={config.training.use_lora}), but "
            f"{path} has no {wanted}; give a checkpoint that train-student wrote, such as DIR/final"
        )
    record = TrainingRecord.read(path)
    if record is not None and not is_same_model(record.model, config.model.name):
        raise ConfigError(f"training.init_from: {path} was trained from {record.model}; expected {config.model.name}")
    if config.training.use_lora:
        _require_same_adapter(path, config)
    return path


def _require_same_adapter(path: Path, config: Config) -> None:
    """Refuse an adapter of another size than the run's record would say."""
    found = peft.LoraConfig.from_pretrained(str(path))
    for key, value, asked in (("r", found.r, config.lora.r), ("alpha", found.lora_alpha, config.lora.alpha)):
        if value != asked:
            raise ConfigError(f"lora.{key}: expected {value}, as in training.init_from ({path}), got {asked}")


def checkpoint_activations(model: Any, config: Config) -> None:
    """Compute activations again in the backward pass, where `training.gradient_checkpointing` says so."""
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if config.training.use_lora:
            # after enabling: frozen embeddings would otherwise cut every checkpointed layer off
            model.enable_input_require_grads()


def add_adapter(base: Any, config: Config, *, task_type: str) -> Any:
    """Put a new LoRA adapter on a model, as `lora` says.

    Args:
        base: a transformers model.
        config: `lora` is used.
        task_type: as PEFT calls it: `CAUSAL_LM`, or `FEATURE_EXTRACTION` for a model without a head.

    Raises:
        ConfigError: target modules that the model lacks, or that take no adapter.
    """
    targets = config.lora.target_modules
    all_linear = targets == [ALL_LINEAR]
    if not all_linear:
        _require_modules(base, targets)
    lora = peft.LoraConfig(
        task_type=task_type,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=ALL_LINEAR if all_linear else list(targets),
        bias="none",
    )
    try:
        return peft.get_peft_model(base, lora)
    except ValueError as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ConfigError(
            f"lora.target_modules: {', '.join(targets)} do not fit {type(base).__name__}: {reason}; "
            f"name some of {_linear_layers(base)}, or set training.use_lora=false"
        ) from error


def _require_modules(base: Any, targets: Sequence[str]) -> None:
    """Refuse names that no module has: PEFT is content where one of them is there, and leaves the others out."""
    names = [name for name, _ in base.named_modules()]
    missing = [target for target in targets if not any(n == target or n.endswith(f".{target}") for n in names)]
    if missing:
        raise ConfigError(
            f"lora.target_modules: {type(base).__name__} has no {', '.join(missing)}; expected names among "
            f"{_linear_layers(base)}, or {ALL_LINEAR}"
        )


def _linear_layers(base: Any) -> str:
    """Names of the linear layers as `lora.target_modules` takes them, the head's aside."""
    head = base.get_output_embeddings()
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    found = [name for name, module in base.named_modules() if isinstance(module, linear) and module is not head]
    return ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in found))
