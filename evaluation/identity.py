"""What was evaluated, as the key of its rows: equal exactly where the scores have to be equal."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from logitbank.configs import Config, config_to_dict
from logitbank.configs.schema import DistillationConfig
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.models.vllm import vllm_version

PACKAGES = ("logitbank", "torch", "transformers", "peft", "datasets", "numpy")
# Keys of a training configuration that a score does not depend on, or that have columns of their own.
NOT_SETUP = (
    "seed",
    "languages",
    "model.name",
    "data.mirror",
    "data.max_validation_per_task",
    "distillation.",
    "teacher.",
    "store.",
    "vllm.",
    "fewshot.",
    "evaluation.",
    "training.max_steps",  # the checkpoint's step says it
    "training.save_steps",
    "training.logging_steps",
    "training.num_workers",
    "training.micro_batch_size",
    "training.gradient_checkpointing",
    "training.loss_chunk_tokens",
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """One model under one condition, evaluated in one way.

    Attributes:
        run: name of this evaluation, the same on every re-run.
        columns: the identifying columns that all rows of the evaluation share.
        run_row: the evaluation's row of `runs`.
    """

    run: str
    columns: Mapping[str, Any]
    run_row: Mapping[str, Any]


def identify(config: Config, condition: str, checkpoint: Checkpoint | None) -> Identity:
    """Name an evaluation by everything that decides its scores, tasks and languages aside."""
    training = dict(checkpoint.training) if checkpoint is not None else {}
    setup = _hash({"training": _training_setup(training.get("config", {})), "evaluation": _protocol(config, condition)})
    variant = describe_variant(training.get("view"), training.get("config", {}).get("distillation", {}))
    seed = training.get("seed", config.seed)
    what = {
        "model": dataclasses.asdict(config.model),
        "condition": condition,
        "checkpoint": checkpoint.identity() if checkpoint is not None else None,
        "seed": seed,
        "setup": setup,
        "engine": config.evaluation.engine,
        "method": config.evaluation.method,
    }
    step = checkpoint.step if checkpoint is not None else None
    run = "-".join([condition, *([f"step{step}"] if step is not None else []), _hash(what)])
    distillation = training.get("config", {}).get("distillation", {}) if training.get("view") else {}
    columns = {
        "run": run,
        "model": config.model.name,
        "condition": condition,
        "checkpoint": str(checkpoint.path) if checkpoint is not None else None,
        "step": step,
        "seed": seed,
    }
    run_row = {
        **columns,
        "kind": "evaluation",
        "view": training.get("view"),
        "lambda_distill": distillation.get("lambda_distill"),
        "strategy": distillation.get("strategy"),
        "variant": variant,
        "setup": setup,
        "training_run": training.get("run"),
        "store_fingerprint": training.get("store_fingerprint"),
        "config": json.dumps(config_to_dict(config), sort_keys=True),
        "config_hash": _hash(config_to_dict(config)),
        "versions": json.dumps(_versions(config), sort_keys=True),
        "created_at": datetime.datetime.now(datetime.UTC),
    }
    return Identity(run, columns, run_row)


def describe_variant(view: str | None, distillation: Mapping[str, Any]) -> str | None:
    """How a student was distilled, to read: `λ=0.5`, `entropy λ=0.5 loss=kl`; None without a teacher."""
    if not view or not distillation:
        return None
    parts = [f"λ={distillation.get('lambda_distill', 0):g}"]
    if distillation.get("strategy", "fixed") != "fixed":
        parts.insert(0, str(distillation["strategy"]))
    for field in dataclasses.fields(DistillationConfig):
        value = distillation.get(field.name)
        default = getattr(DistillationConfig(), field.name)
        if field.name not in ("lambda_distill", "strategy") and value not in (None, default):
            parts.append(f"{field.name}={value}")
    return " ".join(parts)


def _versions(config: Config) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    if config.evaluation.engine == "vllm":
        versions["vllm"] = vllm_version("evaluation.engine")
    return versions


def _training_setup(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(config)
    if flat.get("data.train_languages") != "in_language":
        return {key: value for key, value in flat.items() if not key.startswith(NOT_SETUP)}
    return {key: value for key, value in flat.items() if key == "languages" or not key.startswith(NOT_SETUP)}


def _protocol(config: Config, condition: str) -> dict[str, Any]:
    """Settings of the evaluation that decide its scores; the ones of demonstrations only where shown."""
    protocol: dict[str, Any] = dataclasses.asdict(config.evaluation)
    for key in ("engine", "batch_tokens", "method"):  # the metrics of a method have their own names
        del protocol[key]
    protocol["sources"] = config.data.sources
    protocol["max_tokens"] = config.data.max_teacher_tokens
    if condition == "fewshot":
        protocol["fewshot"] = dataclasses.asdict(config.fewshot)
    return protocol


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
