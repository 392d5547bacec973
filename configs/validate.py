"""Checks of a merged configuration that types alone cannot make."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from logitbank.configs.keys import value_of
from logitbank.configs.schema import ALL_LINEAR, Config, ConfigError, DistillationConfig
from logitbank.preference import TASK as PREFERENCE
from logitbank.registry import ENCODINGS, EVALUATION_ENGINES, LOSSES, STRATEGIES, TASKS, TEACHER_ENGINES
from logitbank.storage import MOST_DRAWS, SIGNALS
from logitbank.tasks import LANGUAGES
from logitbank.tasks.outside import languages_of

CHOICES: dict[str, Collection[str]] = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "teacher.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.head": ("lm", "classifier", "letters"),
    "model.pooling": ("last", "mean", "pair"),
    "data.train_languages": ("english", "in_language"),
    "data.keep_turns": ("last", "first"),
    "data.swap": ("none", "external", "all"),
    "preference.dedup": ("pair", "prompt", "none"),
    "chat.turns": ("all", "last"),
    "chat.thinking": ("drop", "keep"),
    "fewshot.selection": ("per_example", "fixed"),
    "teacher.engine": TEACHER_ENGINES,
    "teacher.signal": SIGNALS,
    "teacher.device_map": ("auto", "balanced", "balanced_low_0", "sequential"),
    "store.encoding": ENCODINGS,
    "distillation.schedule": ("constant", "warmup_then_sft", "linear", "cosine"),
    "distillation.gate": ("none", "teacher_correct", "fewshot_gain"),
    "distillation.loss": LOSSES,
    "distillation.normalize_logits": ("none", "center", "standardize"),
    "distillation.meta_init": ("uniform", "per_task"),
    "training.loss_weight": ("token", "conversation"),
    "training.precision": ("auto", "bf16", "fp16", "fp32"),
    "evaluation.method": ("generate", "likelihood", "classify"),
    "evaluation.engine": EVALUATION_ENGINES,
    "evaluation.split": ("test", "validation", "calibration", "holdout", "held_out"),
}
AT_LEAST: dict[str, float] = {
    "seed": 0,
    "data.max_train_per_task": 1,
    "data.max_validation_per_task": 0,
    "data.max_student_tokens": 8,
    "data.max_teacher_tokens": 8,
    "chat.holdout": 0,
    "preference.holdout": 0,
    "preference.selection": 0,
    "preference.folds": 2,
    "teacher.top_k": 1,
    "teacher.draws": 1,
    "teacher.batch_tokens": 1,
    "vllm.tensor_parallel": 1,
    "vllm.gpu_memory_utilization": 0.01,
    "vllm.kv_cache_gib": 1e-3,
    "vllm.max_sequences": 1,
    "store.shard_tokens": 1,
    "store.chunk_tokens": 1,
    "distillation.lambda_distill": 0,
    "distillation.ce_weight": 0,
    "distillation.n_top_logits": 1,
    "distillation.schedule_steps": 1,
    "distillation.temperature": 1e-3,
    "distillation.ema_decay": 0,
    "distillation.meta_learning_rate": 0,
    "distillation.meta_every": 1,
    "distillation.meta_batch_size": 1,
    "distillation.alpha": 0,
    "distillation.mse_weight": 0,
    "lora.r": 1,
    "lora.alpha": 1,
    "lora.dropout": 0,
    "training.max_steps": 1,
    "training.global_batch_size": 1,
    "training.micro_batch_size": 1,
    "training.packed_tokens": 8,
    "training.learning_rate": 0,
    "training.weight_decay": 0,
    "training.warmup_steps": 0,
    "training.grad_clip": 0,
    "training.label_smoothing": 0,
    "training.eval_steps": 1,
    "training.patience": 1,
    "training.save_steps": 1,
    "training.logging_steps": 1,
    "training.num_workers": 0,
    "training.loss_chunk_tokens": 1,
    "training.save_total_limit": 1,
    "evaluation.max_samples": 1,
    "evaluation.sample_seed": 0,
    "evaluation.batch_tokens": 1,
    "evaluation.max_prompt_tokens": 8,
    "sampling.temperature": 0,
    "sampling.n": 1,
    "sampling.max_new_tokens": 1,
    "sampling.seed": 0,
}

_OTHERWISE = {"tasks": "; name a task of your own by its file: tasks=[./FILE.py:NAME]"}  # for a value like no other


def validate(config: Config, *, any_task: bool = False) -> None:
    """Raise `ConfigError` for the first field whose value is not one of those allowed.

    Args:
        config: to be checked.
        any_task: whether `tasks` may name tasks that are unknown here.
    """
    for key, choices in CHOICES.items():
        value = value_of(config, key)
        if value is not None:
            _check_choice(key, str(value), choices)
    for key, least in AT_LEAST.items():
        value = value_of(config, key)
        if value is not None and not float(str(value)) >= least:
            raise ConfigError(f"{key}: expected a number of at least {least}, got {value}")
    tasks = list(dict.fromkeys([*TASKS, *(config.tasks if any_task else ())]))
    languages = list(dict.fromkeys([*LANGUAGES, *languages_of(config.tasks)]))
    for key, names, known in (("tasks", config.tasks, tasks), ("languages", config.languages, languages)):
        if not names:
            raise ConfigError(f"{key}: expected at least one of {', '.join(known)}, got an empty list")
        for name in names:
            _check_choice(key, name, known)
        if len(set(names)) != len(names):
            raise ConfigError(f"{key}: expected each name at most once, got {', '.join(names)}")
    for key, per_task in (
        ("data.sources", config.data.sources),
        ("fewshot.num_demonstrations", config.fewshot.num_demonstrations),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens),
        ("distillation.lambda_per_task", config.distillation.lambda_per_task),
    ):
        for name in per_task:
            _check_choice(key, name, tasks)
    for name, source in config.data.sources.items():
        if name in TASKS:
            _check_choice(f"data.sources.{name}", source, TASKS[name].sources)
    if not config.chat.holdout < 1:
        raise ConfigError(f"chat.holdout: expected a share below 1, got {config.chat.holdout:g}")
    _check_preference(config)
    _check_distillation(config)
    if config.teacher.load_in_4bit and config.teacher.load_in_8bit:
        raise ConfigError("teacher.load_in_4bit: expected false because teacher.load_in_8bit is true; choose one")
    if config.teacher.draws > MOST_DRAWS:
        raise ConfigError(f"teacher.draws: expected at most {MOST_DRAWS}, got {config.teacher.draws}")
    if config.vllm.gpu_memory_utilization > 1:
        raise ConfigError(
            f"vllm.gpu_memory_utilization: expected a share of at most 1, got {config.vllm.gpu_memory_utilization:g}"
        )
    if not 0 < config.sampling.top_p <= 1:
        raise ConfigError(f"sampling.top_p: expected a share above 0 and at most 1, got {config.sampling.top_p:g}")
    if config.sampling.temperature == 0 and config.sampling.n > 1:
        raise ConfigError(
            "sampling.n: expected 1 at temperature 0, where every answer to a prompt is the same, got "
            f"{config.sampling.n}"
        )
    if config.lora.load_in_4bit and not config.training.use_lora:
        raise ConfigError("lora.load_in_4bit: only a frozen base can be in 4 bits; set training.use_lora=true")
    if config.training.epochs is not None and not config.training.epochs > 0:
        raise ConfigError(f"training.epochs: expected a number above 0, got {config.training.epochs:g}")
    if ALL_LINEAR in config.lora.target_modules and len(config.lora.target_modules) > 1:
        raise ConfigError(
            f"lora.target_modules: {ALL_LINEAR} already names every linear layer; expected nothing else, got "
            f"{', '.join(config.lora.target_modules)}"
        )
    if not config.lora.target_modules:
        raise ConfigError(f"lora.target_modules: expected names of modules, or {ALL_LINEAR}, got an empty list")
    if not config.training.packing and config.training.global_batch_size % config.training.micro_batch_size:
        raise ConfigError(
            f"training.global_batch_size: expected a multiple of training.micro_batch_size "
            f"({config.training.micro_batch_size}), got {config.training.global_batch_size}"
        )


def _check_preference(config: Config) -> None:
    for key in (
        *("preference.holdout", "preference.selection"),
        *("distillation.alpha", "training.label_smoothing"),
    ):
        value = value_of(config, key)
        if not float(str(value)) <= 1:
            raise ConfigError(f"{key}: expected a share of at most 1, got {value}")
    if PREFERENCE in config.tasks and not config.is_preference:
        raise ConfigError(
            f"tasks: {PREFERENCE} cannot be combined with other tasks; expected nothing else, got "
            f"{', '.join(config.tasks)}"
        )
    if (config.head == "lm") == config.is_preference:
        able = "classifier or letters" if config.is_preference else "lm"
        raise ConfigError(f"model.head: expected {able} for {', '.join(config.tasks)}, got {config.head}")
    if config.is_preference and config.training.init_from is not None:
        raise ConfigError(
            "training.init_from: students of comparisons begin with model.name; expected null, got a path"
        )
    if config.training.patience is not None and config.training.eval_steps is None:
        raise ConfigError("training.patience: counts evaluations; set training.eval_steps too")
    for length in config.evaluation.tta_tokens:
        if length < 8:
            raise ConfigError(f"evaluation.tta_tokens: expected lengths of at least 8 tokens, got {length}")
    for view, weight in config.distillation.view_weights.items():
        if not weight > 0:
            raise ConfigError(f"distillation.view_weights.{view}: expected a number above 0, got {weight:g}")


def _check_distillation(config: Config) -> None:
    distillation = config.distillation
    parts = distillation.strategy.split("*")
    for part in parts:
        _check_choice("distillation.strategy", part, STRATEGIES)
    if len(set(parts)) != len(parts):
        raise ConfigError(f"distillation.strategy: expected each part at most once, got {distillation.strategy}")
    # what a part refuses is in its class, and loading one loads torch: the default has nothing to refuse
    asked = {part: STRATEGIES[part] for part in parts if part != DistillationConfig().strategy}
    for strategy in asked.values():
        strategy.check(config)
    for trait, does in (("sets_base", "set the λ of each task"), ("makes_gradients", "make the step's gradient")):
        claiming = [part for part, strategy in asked.items() if getattr(strategy, trait)]
        if len(claiming) > 1:
            raise ConfigError(f"distillation.strategy: {' and '.join(claiming)} all {does}; choose one of them")
    making = [part for part, strategy in asked.items() if strategy.makes_gradients]
    if making and distillation.ce_weight != 1:
        raise ConfigError(
            f"distillation.ce_weight: {making[0]} weighs the gradients itself; expected 1, got "
            f"{distillation.ce_weight:g}"
        )
    if config.is_preference and distillation.ce_weight != 1:
        raise ConfigError(
            "distillation.ce_weight: of comparisons, distillation.alpha divides the loss; expected 1, got "
            f"{distillation.ce_weight:g}"
        )
    for task, value in distillation.lambda_per_task.items():
        if value < 0:
            raise ConfigError(f"distillation.lambda_per_task.{task}: expected at least 0, got {value}")
    if distillation.schedule == "warmup_then_sft" and distillation.schedule_steps is None:
        raise ConfigError(
            "distillation.schedule_steps: expected the number of steps to distil for (warmup_then_sft), got none"
        )
    for key, plain, takes in (
        ("temperature", 1, "takes_temperature"),
        ("normalize_logits", "none", "takes_normalize_logits"),
    ):
        value = getattr(distillation, key)
        if config.is_preference and key == "temperature":
            continue  # its losses are on probabilities
        if value != plain and not getattr(LOSSES[distillation.loss], takes):
            able = ", ".join(name for name, loss in LOSSES.items() if getattr(loss, takes))
            raise ConfigError(
                f"distillation.{key}: {distillation.loss} does not use it; expected {plain}, got {value}; "
                f"losses that use it: {able}"
            )
    if not distillation.ema_decay < 1:
        raise ConfigError(f"distillation.ema_decay: expected less than 1, got {distillation.ema_decay}")
    comparing = [part for part, strategy in asked.items() if strategy.compares_gradients]
    if comparing and config.training.precision == "fp16":
        raise ConfigError(
            f"distillation.strategy: {comparing[0]} compares gradients, which fp16 rounds to zero unless "
            "scaled; set training.precision to bf16 or fp32"
        )


def _check_choice(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, list(choices), n=1)
        hint = f"; did you mean {near[0]}?" if near else _OTHERWISE.get(key, "")
        raise ConfigError(f"{key}: expected one of {', '.join(choices)}, got {value!r}{hint}")
