"""The whole configuration as frozen dataclasses; every key is documented in docs/configuration.md.

OmegaConf merges YAML and `key=value` overrides onto this schema (see `loader.py`); the rest of the
code only ever sees these plain, typed, immutable objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MISSING = "???"  # OmegaConf's marker for "must be given"


class ConfigError(ValueError):
    """A configuration the user has to mend: says the field, what was expected, what was found."""


@dataclass(frozen=True)
class ModelConfig:
    """The student's base model, which is also the teacher unless `teacher.model` names another."""

    name: str = MISSING
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how long they may be."""

    mirror: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    train_languages: str = "english"
    max_train_per_task: int = 5000
    max_validation_per_task: int = 100
    max_student_tokens: int = 512
    max_teacher_tokens: int = 2048


@dataclass(frozen=True)
class FewshotConfig:
    """The demonstrations of few-shot prompts."""

    selection: str = "per_example"
    num_demonstrations: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen model whose logits are cached, and how it is run."""

    model: str | None = None
    revision: str | None = None
    engine: str = "hf"
    dtype: str | None = None
    top_k: int = 256
    signal: str = "topk"
    draws: int = 50
    batch_tokens: int = 8192
    prefix_reuse: bool = True
    device_map: str | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False


@dataclass(frozen=True)
class VllmConfig:
    """How vLLM runs, where `teacher.engine` or `evaluation.engine` is vllm."""

    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: float | None = None
    max_sequences: int = 256


@dataclass(frozen=True)
class StoreConfig:
    """How the teacher store is laid out on disk."""

    encoding: str = "compact"
    shard_tokens: int = 4096
    chunk_tokens: int = 4096


@dataclass(frozen=True)
class DistillationConfig:
    """The distillation term L = CE + λ·KD: which divergence, and how λ is decided."""

    lambda_distill: float = 0.5
    strategy: str = "fixed"
    lambda_per_task: dict[str, float] = field(
        default_factory=lambda: {"nli": 0.5, "pa": 0.3, "qa": 0.2, "ner": 0.05, "pos": 0.05}
    )
    schedule: str = "constant"
    schedule_steps: int | None = None
    gate: str = "none"
    n_top_logits: int | None = None
    loss: str = "mse"
    normalize_logits: str = "none"
    temperature: float = 1.0
    ema_decay: float = 0.95
    conflict_parameters: str | None = None
    meta_learning_rate: float = 0.1
    meta_init: str = "uniform"
    meta_every: int = 1
    meta_batch_size: int = 16


@dataclass(frozen=True)
class LoraConfig:
    """The LoRA adapter, used when `training.use_lora` is true."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    load_in_4bit: bool = False
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass(frozen=True)
class TrainingConfig:
    """The optimizer loop of one student."""

    max_steps: int = 1000
    global_batch_size: int = 32
    micro_batch_size: int = 4
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    warmup_steps: int = 50
    grad_clip: float = 1.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    use_lora: bool = True
    save_steps: int = 200
    logging_steps: int = 10
    num_workers: int = 2
    loss_chunk_tokens: int = 1024
    save_total_limit: int | None = None
    tensorboard: bool = False
    wandb_project: str | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy generation and scoring."""

    engine: str = "hf"
    method: str = "generate"
    split: str = "test"
    max_samples: int = 500
    sample_seed: int = 42
    batch_tokens: int = 8192
    max_new_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Everything one experiment is: the same file serves all commands."""

    tasks: list[str] = field(default_factory=lambda: ["nli", "pa", "qa", "ner", "pos"])
    languages: list[str] = field(default_factory=lambda: ["en", "hi", "es", "de", "fr", "zh"])
    seed: int = 42
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    fewshot: FewshotConfig = field(default_factory=FewshotConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
