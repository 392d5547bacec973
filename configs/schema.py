"""The whole configuration as frozen dataclasses; every key is documented in docs/configuration.md.

OmegaConf merges YAML and `key=value` overrides onto this schema (see `loader.py`); the rest of the
code only ever sees these plain, typed, immutable objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any

from logitbank.errors import ConfigError
from logitbank.preference import TASK as PREFERENCE

__all__ = ["Config", "ConfigError", "Decides"]

MISSING = "???"  # OmegaConf's marker for "must be given"
ALL_LINEAR = "all-linear"  # of `lora.target_modules`: every linear layer but the `lm_head`, whatever they are called


class Decides(Flag):
    """What a configuration key decides; fingerprints, `--resume`, setups and the documentation follow this.

    A key that decides nothing changes how fast something is computed or what is written beside it: results
    that differ in it alone are results of the same experiment.
    """

    NOTHING = 0
    STORE = auto()  # the content of a teacher store
    STUDENT = auto()  # the weights of a student, its store being given
    SCORE = auto()  # the scores of given weights


NOTHING, STORE, STUDENT, SCORE = Decides.NOTHING, Decides.STORE, Decides.STUDENT, Decides.SCORE


def key(default: Any = None, *, decides: Decides, factory: Callable[[], Any] | None = None) -> Any:
    """A configuration key with its default and what it decides."""
    if factory is not None:
        return field(default_factory=factory, metadata={"decides": decides})
    return field(default=default, metadata={"decides": decides})


@dataclass(frozen=True)
class ModelConfig:
    """The student's base model, which is also the teacher unless `teacher.model` names another."""

    name: str = key(MISSING, decides=STORE | STUDENT | SCORE)
    revision: str | None = key(None, decides=STORE | STUDENT | SCORE)
    dtype: str = key("auto", decides=STORE | STUDENT | SCORE)
    attn_implementation: str | None = key(None, decides=STORE | STUDENT | SCORE)
    trust_remote_code: bool = key(False, decides=NOTHING)
    head: str | None = key(None, decides=STUDENT | SCORE)
    pooling: str = key("pair", decides=STUDENT | SCORE)
    fallbacks: list[str] = key(factory=list, decides=NOTHING)


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how long they may be."""

    mirror: str | None = key(None, decides=NOTHING)
    sources: dict[str, str] = key(factory=dict, decides=STORE | SCORE)
    train_languages: str = key("english", decides=STORE)
    max_train_per_task: int | None = key(None, decides=STORE | STUDENT)
    max_validation_per_task: int = key(100, decides=STORE)
    max_student_tokens: int | None = key(None, decides=STORE | STUDENT)
    max_teacher_tokens: int | None = key(None, decides=STORE)
    keep_turns: str = key("last", decides=STORE | STUDENT | SCORE)
    swap: str = key("none", decides=STUDENT)


@dataclass(frozen=True)
class ChatConfig:
    """Conversations of one's own, for the task `chat`."""

    train: str | None = key(None, decides=STORE)
    validation: str | None = key(None, decides=STORE)
    test: str | None = key(None, decides=NOTHING)
    holdout: float = key(0.05, decides=STORE)
    turns: str = key("all", decides=STORE | SCORE)
    thinking: str = key("drop", decides=STORE | SCORE)
    context: str | None = key(None, decides=STORE)


@dataclass(frozen=True)
class PreferenceConfig:
    """Comparisons of two answers, for the task `preference`."""

    train: str | None = key(None, decides=STORE)
    validation: str | None = key(None, decides=STORE)
    test: str | None = key(None, decides=STORE)
    external: list[str] = key(factory=list, decides=STORE)
    holdout: float = key(0.05, decides=STORE)
    selection: float = key(0.2, decides=STORE)
    dedup: str = key("pair", decides=STORE)
    folds: int = key(5, decides=STORE)


@dataclass(frozen=True)
class FewshotConfig:
    """The demonstrations of few-shot prompts."""

    selection: str = key("per_example", decides=STORE | SCORE)
    num_demonstrations: dict[str, int] = key(factory=dict, decides=STORE | SCORE)


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen model whose logits are cached, and how it is run."""

    model: str | None = key(None, decides=STORE)
    revision: str | None = key(None, decides=STORE)
    engine: str = key("hf", decides=STORE)
    dtype: str | None = key(None, decides=STORE)
    top_k: int = key(256, decides=STORE)
    signal: str = key("topk", decides=STORE)
    draws: int = key(50, decides=STORE)
    batch_tokens: int = key(8192, decides=STORE)
    prefix_reuse: bool = key(True, decides=STORE)
    device_map: str | None = key(None, decides=NOTHING)
    load_in_8bit: bool = key(False, decides=STORE)
    load_in_4bit: bool = key(False, decides=STORE)


@dataclass(frozen=True)
class VllmConfig:
    """How vLLM runs, where `teacher.engine` or `evaluation.engine` is vllm."""

    tensor_parallel: int = key(1, decides=NOTHING)
    gpu_memory_utilization: float = key(0.9, decides=NOTHING)
    kv_cache_gib: float | None = key(None, decides=NOTHING)
    max_sequences: int = key(256, decides=NOTHING)


@dataclass(frozen=True)
class StoreConfig:
    """How the teacher store is laid out on disk."""

    encoding: str = key("compact", decides=STORE)
    shard_tokens: int = key(4096, decides=STORE)
    chunk_tokens: int = key(4096, decides=STORE)


@dataclass(frozen=True)
class DistillationConfig:
    """The loss L = w·CE + λ·KD: which divergence, and how λ is decided."""

    lambda_distill: float = key(0.5, decides=STUDENT)
    ce_weight: float = key(1.0, decides=STUDENT)
    strategy: str = key("fixed", decides=STUDENT)
    lambda_per_task: dict[str, float] = key(
        factory=lambda: {"nli": 0.5, "pa": 0.3, "qa": 0.2, "ner": 0.05, "pos": 0.05}, decides=STUDENT
    )
    schedule: str = key("constant", decides=STUDENT)
    schedule_steps: int | None = key(None, decides=STUDENT)
    gate: str = key("none", decides=STUDENT)
    n_top_logits: int | None = key(None, decides=STUDENT)
    loss: str = key("mse", decides=STUDENT)
    normalize_logits: str = key("none", decides=STUDENT)
    temperature: float = key(1.0, decides=STUDENT)
    ema_decay: float = key(0.95, decides=STUDENT)
    conflict_parameters: str | None = key(None, decides=STUDENT)
    meta_learning_rate: float = key(0.1, decides=STUDENT)
    meta_init: str = key("uniform", decides=STUDENT)
    meta_every: int = key(1, decides=STUDENT)
    meta_batch_size: int = key(16, decides=STUDENT)
    alpha: float = key(0.5, decides=STUDENT)
    mse_weight: float = key(0.0, decides=STUDENT)
    view_weights: dict[str, float] = key(factory=dict, decides=STUDENT)


@dataclass(frozen=True)
class LoraConfig:
    """The LoRA adapter, used when `training.use_lora` is true."""

    r: int = key(16, decides=STUDENT)
    alpha: int = key(32, decides=STUDENT)
    dropout: float = key(0.05, decides=STUDENT)
    load_in_4bit: bool = key(False, decides=STUDENT)
    target_modules: list[str] = key(
        factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], decides=STUDENT
    )


@dataclass(frozen=True)
class TrainingConfig:
    """The optimizer loop of one student."""

    init_from: str | None = key(None, decides=STUDENT)
    max_steps: int = key(1000, decides=STUDENT)
    epochs: float | None = key(None, decides=STUDENT)
    global_batch_size: int = key(32, decides=STUDENT)
    micro_batch_size: int = key(4, decides=NOTHING)
    learning_rate: float = key(2e-4, decides=STUDENT)
    weight_decay: float = key(0.01, decides=STUDENT)
    warmup_steps: int = key(50, decides=STUDENT)
    grad_clip: float = key(1.0, decides=STUDENT)
    loss_weight: str = key("token", decides=STUDENT)
    label_smoothing: float = key(0.0, decides=STUDENT)
    eval_steps: int | None = key(None, decides=STUDENT)
    patience: int | None = key(None, decides=STUDENT)
    packing: bool = key(False, decides=NOTHING)
    packed_tokens: int = key(8192, decides=NOTHING)
    precision: str = key("auto", decides=STUDENT)
    gradient_checkpointing: bool = key(False, decides=NOTHING)
    use_lora: bool = key(True, decides=STUDENT)
    save_steps: int = key(200, decides=NOTHING)
    logging_steps: int = key(10, decides=NOTHING)
    num_workers: int = key(2, decides=NOTHING)
    loss_chunk_tokens: int = key(1024, decides=NOTHING)
    save_total_limit: int | None = key(None, decides=NOTHING)
    tensorboard: bool = key(False, decides=NOTHING)
    wandb_project: str | None = key(None, decides=NOTHING)

    def steps_over(self, examples: int) -> int:
        """Optimizer steps of a run over so many training examples; the last one of an epoch is whole."""
        if self.epochs is None:
            return self.max_steps
        return max(1, math.ceil(self.epochs * examples / self.global_batch_size - 1e-9))  # 0.1 · 30 is more than 3


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy generation and scoring."""

    engine: str = key("hf", decides=NOTHING)
    method: str = key("generate", decides=SCORE)
    split: str = key("test", decides=SCORE)
    max_samples: int | None = key(None, decides=SCORE)
    sample_seed: int = key(42, decides=SCORE)
    batch_tokens: int = key(8192, decides=NOTHING)
    max_prompt_tokens: int = key(16384, decides=SCORE)
    max_new_tokens: dict[str, int] = key(factory=dict, decides=SCORE)
    tta_tokens: list[int] = key(factory=list, decides=SCORE)
    swap_average: bool = key(False, decides=SCORE)
    load_in_8bit: bool = key(False, decides=SCORE)


@dataclass(frozen=True)
class SamplingConfig:
    """Answers to the training examples that a model writes, for `sample-answers` and `--answers generate`."""

    model: str | None = key(None, decides=STORE)
    temperature: float = key(1.0, decides=STORE)
    top_p: float = key(1.0, decides=STORE)
    n: int = key(1, decides=STORE)
    max_new_tokens: int | None = key(None, decides=STORE)
    seed: int | None = key(None, decides=STORE)


@dataclass(frozen=True)
class Config:
    """The whole configuration of an experiment; the same file serves all commands."""

    tasks: list[str] = key(factory=lambda: ["nli", "pa", "qa", "ner", "pos"], decides=STORE | STUDENT)
    languages: list[str] = key(factory=lambda: ["en", "hi", "es", "de", "fr", "zh"], decides=STORE)
    seed: int = key(42, decides=STORE | STUDENT | SCORE)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    fewshot: FewshotConfig = field(default_factory=FewshotConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def is_preference(self) -> bool:
        """Whether the task is comparisons of two answers, which have their own kind of store and student."""
        return self.tasks == [PREFERENCE]

    @property
    def head(self) -> str:
        """The head of a student: `lm`, `classifier` or `letters`."""
        return self.model.head or ("classifier" if self.is_preference else "lm")
