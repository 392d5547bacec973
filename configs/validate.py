"""Checks of a merged configuration that types alone cannot make."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from configs.schema import Config, ConfigError
from tasks import LANGUAGES, TASKS

CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "teacher.dtype": ("auto", "float32", "bfloat16", "float16"),
    "data.train_languages": ("english", "in_language"),
    "fewshot.selection": ("per_example", "fixed"),
    "teacher.engine": ("hf",),
    "store.encoding": ("compact", "float16", "exact"),
    "distillation.strategy": ("fixed",),
    "distillation.loss": ("mse",),
    "training.precision": ("auto", "bf16", "fp16", "fp32"),
    "evaluation.engine": ("hf",),
    "evaluation.split": ("test", "validation"),
}
AT_LEAST: dict[str, float] = {
    "seed": 0,
    "data.max_train_per_task": 1,
    "data.max_validation_per_task": 0,
    "data.max_student_tokens": 8,
    "data.max_teacher_tokens": 8,
    "teacher.top_k": 1,
    "teacher.batch_tokens": 1,
    "store.shard_tokens": 1,
    "store.chunk_tokens": 1,
    "distillation.lambda_distill": 0,
    "distillation.n_top_logits": 1,
    "lora.r": 1,
    "lora.alpha": 1,
    "lora.dropout": 0,
    "training.max_steps": 1,
    "training.global_batch_size": 1,
    "training.micro_batch_size": 1,
    "training.learning_rate": 0,
    "training.weight_decay": 0,
    "training.warmup_steps": 0,
    "training.grad_clip": 0,
    "training.save_steps": 1,
    "training.logging_steps": 1,
    "training.num_workers": 0,
    "training.loss_chunk_tokens": 1,
    "evaluation.max_samples": 1,
    "evaluation.sample_seed": 0,
    "evaluation.batch_tokens": 1,
}


def validate(config: Config) -> None:
    """Raise `ConfigError` for the first field whose value is not one of those allowed."""
    for key, choices in CHOICES.items():
        value = _get(config, key)
        if value is not None:
            _check_choice(key, str(value), choices)
    for key, least in AT_LEAST.items():
        value = _get(config, key)
        if value is not None and not float(str(value)) >= least:
            raise ConfigError(f"{key}: expected a number of at least {least}, got {value}")
    for key, names, known in (("tasks", config.tasks, TASKS), ("languages", config.languages, LANGUAGES)):
        if not names:
            raise ConfigError(f"{key}: expected at least one of {', '.join(known)}, got an empty list")
        for name in names:
            _check_choice(key, name, known)
        if len(set(names)) != len(names):
            raise ConfigError(f"{key}: each at most once, got {', '.join(names)}")
    for key, per_task in (
        ("data.sources", config.data.sources),
        ("fewshot.num_demonstrations", config.fewshot.num_demonstrations),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens),
    ):
        for name in per_task:
            _check_choice(key, name, TASKS)
    for name, source in config.data.sources.items():
        _check_choice(f"data.sources.{name}", source, TASKS[name].sources)
    if config.training.global_batch_size % config.training.micro_batch_size:
        raise ConfigError(
            f"training.global_batch_size: expected a multiple of training.micro_batch_size "
            f"({config.training.micro_batch_size}), got {config.training.global_batch_size}"
        )


def _get(config: Config, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _check_choice(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, list(choices), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key}: expected one of {', '.join(choices)}, got {value!r}{hint}")
