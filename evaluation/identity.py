"""What was evaluated, as the key of its rows: equal exactly where the scores have to be equal.

A *run* is one evaluation of one model: everything that decides its scores is in its name, the tasks and
languages that were asked for aside. A *setup* is what two students must share for their difference to be one of
the method: how they were trained, distillation and seed aside, and how they were evaluated. What a key of the
configuration decides is in its schema; nothing that decides nothing is in either.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from logitbank.configs import Config, Decides, config_to_dict, keys_deciding, value_of
from logitbank.configs.schema import DistillationConfig
from logitbank.evaluation.checkpoints import Checkpoint, opened_models
from logitbank.evaluation.questions import is_forced, shows_demonstrations
from logitbank.experiment import TrainingRecord, flatten
from logitbank.models.huggingface import load_tokenizer
from logitbank.models.vllm import vllm_version
from logitbank.models.weights import adapted_weights_hash, weights_hash
from logitbank.preference import TASK as PREFERENCE

PACKAGES = ("logitbank", "torch", "transformers", "peft", "datasets", "numpy")
# weights and columns of their own say these; epochs are in a run's record as its steps
NAMED = ("model.name", "model.revision", "seed", "evaluation.method", "training.epochs")

HASHED = "chat."  # the hash of the examples of a cell says what these decide, and only of conversations


class Encoding(Protocol):
    """What of a prompt's making decides scores; a `PromptEncoder` says it, and whatever needs no chat template."""

    @property
    def tokenizer_hash(self) -> str:
        """Of all that decides which ids a text gets."""

    @property
    def template_hash(self) -> str | None:
        """Of the chat template; None if none is used."""


@dataclass(frozen=True)
class Model:
    """What is evaluated, before it is opened.

    Attributes:
        base_weights: hash of the weights that are loaded first: the model's, or a full checkpoint's.
        weights: hash of all weights, an adapter's included.
        encoding: how its prompts are made.
    """

    base_weights: str
    weights: str
    encoding: Encoding


@dataclass(frozen=True)
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

    def generation(self, number: int) -> Identity:
        """The same evaluation on data that changed since: numbered from 1, which is the evaluation itself."""
        name = {"run": self.run if number == 1 else f"{self.run}.{number}"}
        return Identity(name["run"], {**self.columns, **name}, {**self.run_row, **name})


def open_tokenizer(config: Config, checkpoint: Checkpoint | None) -> Any:
    """The tokenizer of the evaluated model; ConfigError if it cannot be opened."""
    return load_tokenizer(opened_models(config.model, checkpoint)[1])


def examine(config: Config, checkpoint: Checkpoint | None, encoding: Encoding) -> Model:
    """Hash the weights of the evaluated model.

    Args:
        config: names the model.
        checkpoint: the trained weights; None for the model before training.
        encoding: how its prompts are made.

    Raises:
        ConfigError: a model that cannot be opened.
    """
    base = weights_hash(opened_models(config.model, checkpoint)[0])
    adapter = checkpoint is not None and checkpoint.is_adapter
    whole = adapted_weights_hash(base, weights_hash(checkpoint.model)) if checkpoint is not None and adapter else base
    return Model(base, whole, encoding)


def identify(
    config: Config,
    condition: str,
    checkpoint: Checkpoint | None,
    model: Model,
    against: str | None = None,
    *,
    shared: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> Identity:
    """Name an evaluation by everything that decides its scores, tasks and languages aside.

    Args:
        config: how it is evaluated.
        condition: under which its rows appear.
        checkpoint: the trained weights; None for the model before training.
        model: what is evaluated.
        against: fingerprint of the teacher's view that answers are compared with; None without one.
        shared: what else runs must share to be compared.
        own: what else decides the scores of this one.
    """
    training = checkpoint.training if checkpoint is not None else None
    distillation: Mapping[str, Any] = {}
    if training is not None and training.view is not None:
        distillation = training.config.get("distillation", {})
    # Greedy decoding draws nothing: without training, a seed draws the demonstrations or nothing at all.
    seed = training.seed if training is not None else config.seed if shows_demonstrations(condition) else None
    step = checkpoint.step if checkpoint is not None else None
    setup = _hash({**_setup(config, condition, checkpoint, model), **(shared or {})})
    preference = training is not None and training.config.get("tasks") == [PREFERENCE]
    variant = (describe_weights if preference else describe_variant)(distillation)
    what = {
        "model": config.model.name,
        "weights": model.weights,
        "condition": condition,
        "setup": setup,
        "variant": variant,
        "seed": seed,
        "training_run": training.run if training is not None else None,
        "step": step,
        "method": config.evaluation.method,
        **_of_likelihoods(config, against),
        **(own or {}),
    }
    run = "-".join([condition, *([f"step{step}"] if step is not None else []), _hash(what)])
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
        "lambda_distill": None if preference else distillation.get("lambda_distill"),
        "strategy": None if preference else distillation.get("strategy"),
        "variant": variant,
        "setup": setup,
        **(_of_training(training) if training is not None else {}),
        "weights": model.weights,
        "tokenizer": model.encoding.tokenizer_hash,
        "template": model.encoding.template_hash,
        "config": json.dumps(config_to_dict(config), sort_keys=True),
        "config_hash": _hash(config_to_dict(config)),
        "versions": json.dumps(_versions(config), sort_keys=True),
        "created_at": datetime.datetime.now(datetime.UTC),
    }
    return Identity(run, columns, run_row)


def describe_variant(distillation: Mapping[str, Any]) -> str | None:
    """How a student was distilled, to read: `λ=0.5`, `entropy λ=0.5 loss=jsd`; None without a teacher.

    Settings that the others make idle, such as the decay of an average that no strategy keeps, are left out.
    """
    if not distillation:
        return None
    strategy = str(distillation.get("strategy", "fixed"))
    parts = [*([strategy] if strategy != "fixed" else []), f"λ={distillation.get('lambda_distill', 0):g}"]
    for field in dataclasses.fields(DistillationConfig):
        value = distillation.get(field.name)
        default = getattr(DistillationConfig(), field.name)
        if field.name not in ("lambda_distill", "strategy") and value not in (None, default):
            if _is_idle(field.name, distillation, strategy.split("*")):
                continue
            parts.append(f"{field.name}={value}")
    return " ".join(parts)


def describe_weights(distillation: Mapping[str, Any]) -> str | None:
    """How a student of preferences was distilled, to read: `α=0.5`, `α=0.7 temperature=2`; None without a teacher."""
    if not distillation:
        return None
    parts = [f"α={distillation.get('alpha', 0):g}"]
    for name in ("temperature", "mse_weight"):
        value = distillation.get(name, getattr(DistillationConfig(), name))
        if value != getattr(DistillationConfig(), name):
            parts.append(f"{name}={value:g}")
    if weights := distillation.get("view_weights"):
        parts.append("weights=" + ",".join(f"{view}:{weight:g}" for view, weight in sorted(weights.items())))
    return " ".join(parts)


def _is_idle(name: str, distillation: Mapping[str, Any], strategies: list[str]) -> bool:
    if name in ("alpha", "mse_weight", "view_weights"):
        return True  # of preferences
    if name == "lambda_per_task":
        return "per_task" not in strategies and not (
            "meta" in strategies and distillation.get("meta_init") == "per_task"
        )
    needs = {"ema_decay": "loss_ratio", "conflict_parameters": "gradient_conflict"}
    if name.startswith("meta_"):
        return "meta" not in strategies
    if name == "schedule_steps":
        return distillation.get("schedule", "constant") == "constant"
    return name in needs and needs[name] not in strategies


def _setup(config: Config, condition: str, checkpoint: Checkpoint | None, model: Model) -> dict[str, Any]:
    """All that rows must share to be compared, seed and distillation aside."""
    demonstrations = shows_demonstrations(condition)
    protocol = {
        key: value_of(config, key)
        for key in keys_deciding(Decides.SCORE, comparisons=config.is_preference)
        if key not in NAMED and not key.startswith(HASHED) and (demonstrations or not key.startswith("fewshot."))
    }
    written = {task: limit for task, limit in config.evaluation.max_new_tokens.items() if not is_forced(task)}
    shared: dict[str, Any] = {
        "protocol": protocol | {"evaluation.max_new_tokens": written},
        "tokenizer": model.encoding.tokenizer_hash,
        "template": model.encoding.template_hash,
    }
    if checkpoint is None:
        return {**shared, "weights": model.weights}
    if checkpoint.training is None:  # nothing is known of it but its weights; its checkpoints belong together
        own = str(checkpoint.path.resolve().parent) if checkpoint.step is not None else model.weights
        return {**shared, "checkpoint": own}
    return {
        **shared,
        "base": model.base_weights if checkpoint.is_adapter else checkpoint.training.model,
        "training_set": checkpoint.training.training_set or checkpoint.training.store_fingerprint,
        "training": _training_settings(checkpoint.training),
    }


def _of_likelihoods(config: Config, against: str | None) -> dict[str, Any]:
    """What tells evaluations of gold answers apart, but decides no score: a teacher beside them, answers to read."""
    limits = {task: limit for task, limit in config.evaluation.max_new_tokens.items() if is_forced(task)}
    said = {"against": against, "max_new_tokens": limits or None}
    return {name: value for name, value in said.items() if value is not None}


def _training_settings(training: TrainingRecord) -> dict[str, Any]:
    """Settings that decide a student's weights, those of distillation and columns of their own aside.

    Students that leave out one fold share them, whichever it is: the same epochs over folds of other sizes are other
    steps.
    """
    given, defaults = flatten(training.config), Config()
    deciding = keys_deciding(Decides.STUDENT, comparisons=given.get("tasks") == [PREFERENCE])
    keys = [key for key in deciding if key not in NAMED and not key.startswith("distillation.")]
    settings = {key: given.get(key, value_of(defaults, key)) for key in keys}
    if training.held_out_fold is None:
        return settings
    epochs = given.get("training.epochs")
    steps = settings["training.max_steps"] if epochs is None else f"{epochs:g} epochs"
    return settings | {"training.max_steps": steps, "held out": "one fold"}


def _of_training(training: TrainingRecord) -> dict[str, Any]:
    return {
        "view": training.view,
        "held_out_fold": training.held_out_fold,
        "training_run": training.run,
        "max_steps": flatten(training.config).get("training.max_steps"),
        "store_fingerprint": training.store_fingerprint,
        "view_fingerprint": training.view_fingerprint,
        "teacher": training.teacher if training.view is not None else None,
        "top_k": training.top_k if training.view is not None else None,
        "training_set": training.training_set or training.store_fingerprint,
    }


def _versions(config: Config) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    if config.evaluation.engine == "vllm":
        versions["vllm"] = vllm_version("evaluation.engine")
    return versions


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
