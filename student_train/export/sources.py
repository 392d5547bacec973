"""The checkpoints that are exported: what they are, what they grew from, and whether they belong together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft

from logitbank.configs.schema import ConfigError, ModelConfig
from logitbank.experiment import TrainingRecord, is_same_model
from logitbank.models.pair_head import HEAD_SETTINGS, HEAD_WEIGHTS, HeadSettings, read_head_settings
from logitbank.models.weights import weights_hash
from logitbank.preference import TASK, SeenPrompts

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Source:
    """A directory that training or an earlier export wrote.

    Attributes:
        path: the directory.
        adapter: `peft.LoraConfig` of an adapter; None for a whole model.
        base: what an adapter is put on, or a whole model itself.
        training: what the training run said of itself; None if another program trained it.
        head: how pairs are packed for its head; None for a language model's own.
        weights: hash of its weights.
        seen: the prompts that it learned from; None if that is unknown.
    """

    path: Path
    adapter: Any
    base: ModelConfig
    training: TrainingRecord | None
    head: HeadSettings | None
    weights: str
    seen: SeenPrompts | None

    @property
    def is_adapter(self) -> bool:
        """Whether it is put on a base."""
        return self.adapter is not None

    @property
    def has_own_head(self) -> bool:
        """Whether `classifier_head.safetensors` is beside it."""
        return self.head is not None and self.head.head == "classifier"


def open_source(path: Path, option: str, base: str | None = None) -> Source:
    """Recognise a checkpoint; no weights are loaded.

    Args:
        path: its directory.
        option: that names it, for messages.
        base: where the base model of an adapter is now; default where its training found it.

    Raises:
        ConfigError: no model in the directory, an adapter that names no base, or a classifier without its head.
    """
    if not path.is_dir():
        raise ConfigError(f"{option}: no directory {shlex.quote(str(path))}; expected what train-student wrote")
    adapter = _adapter(path, option) if (path / ADAPTER_CONFIG).is_file() else None
    if adapter is None and not (path / MODEL_CONFIG).is_file():
        near = sorted(child.name for child in path.iterdir() if (child / ADAPTER_CONFIG).is_file())
        near += sorted(child.name for child in path.iterdir() if (child / MODEL_CONFIG).is_file())
        hint = f"; it holds {', '.join(near[:6])}: give one of them" if near else ""
        raise ConfigError(
            f"{option}: {shlex.quote(str(path))} holds neither {ADAPTER_CONFIG} (an adapter) nor {MODEL_CONFIG} "
            f"(a model){hint}"
        )
    training = TrainingRecord.read(path)
    return Source(
        path=path,
        adapter=adapter,
        base=ModelConfig(name=str(path)) if adapter is None else _base(path, option, adapter, training, base),
        training=training,
        head=_head(path, option, training),
        weights=weights_hash(ModelConfig(name=str(path))),
        seen=SeenPrompts.read(path),
    )


def check_together(sources: Sequence[Source]) -> None:
    """Refuse to average what does not belong together.

    Raises:
        ConfigError: adapters beside whole models, other bases, other heads, or kinds of adapters that have no mean.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.is_adapter != first.is_adapter:
            kinds = {True: "an adapter", False: "a whole model"}
            raise ConfigError(
                f"--average: {first.path} is {kinds[first.is_adapter]} and {other.path} {kinds[other.is_adapter]}; "
                "give only adapters or only whole models"
            )
        if other.head != first.head:
            raise ConfigError(
                f"--average: the heads differ: {HEAD_SETTINGS} of {first.path} says {_describe(first.head)}, of "
                f"{other.path} {_describe(other.head)}"
            )
        if (names := _other_bases(first, other)) is not None:
            raise ConfigError(
                f"--average: expected one base model, got {names[0]} for {first.path} and {names[1]} for "
                f"{other.path}; weights that started from different models cannot be averaged"
            )


def seen_by_all(sources: Sequence[Source]) -> SeenPrompts | None:
    """The prompts that any of them saw; None if one of them does not say."""
    union: SeenPrompts | None = None
    for source in sources:
        if source.seen is None:
            return None
        union = source.seen.union(union)
    return union


def _adapter(path: Path, option: str) -> Any:
    """The configuration of a LoRA adapter whose ΔW is B·A, times a number, and nothing else.

    Raises:
        ConfigError: any other adapter.
    """
    try:
        config = peft.PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{option}: {path / ADAPTER_CONFIG} cannot be read: {_line(error)}") from None
    if not any((path / name).is_file() for name in ADAPTER_WEIGHTS):
        raise ConfigError(f"{option}: {path} has no {ADAPTER_WEIGHTS[0]}, the adapter's weights")
    if not isinstance(config, peft.LoraConfig):
        raise ConfigError(f"{option}: expected a LoRA adapter in {path}, got {config.peft_type}")
    extras = {
        "use_dora": config.use_dora,
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "modules_to_save": config.modules_to_save,
        "target_parameters": config.target_parameters,
        "trainable_token_indices": config.trainable_token_indices,
    }
    if found := [name for name, present in extras.items() if present]:
        raise ConfigError(
            f"{option}: the adapter in {path} has {', '.join(found)}, but export-model only reads plain LoRA, as "
            "train-student writes it"
        )
    return config


def _base(path: Path, option: str, adapter: Any, training: TrainingRecord | None, given: str | None) -> ModelConfig:
    recorded = {} if training is None else training.config.get("model", {})
    name = given or adapter.base_model_name_or_path or (None if training is None else training.model)
    if name is None:
        raise ConfigError(f"{option}: {path} does not record which model the adapter is for; add --base MODEL")
    if given is None and name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ConfigError(f"{option}: the base model of {path} was {name}, which does not exist; add --base MODEL")
    return ModelConfig(
        name=name,
        revision=None if given is not None else adapter.revision or recorded.get("revision"),
        trust_remote_code=bool(recorded.get("trust_remote_code", False)),
    )


def _head(path: Path, option: str, training: TrainingRecord | None) -> HeadSettings | None:
    head = read_head_settings(path)
    if head is None:
        was_classifier = training is not None and training.config.get("tasks") == [TASK]
        if was_classifier or (path / HEAD_WEIGHTS).is_file():
            raise ConfigError(f"{option}: {path} has no {HEAD_SETTINGS}, so it is unknown how its head reads pairs")
    elif head.head == "classifier" and not (path / HEAD_WEIGHTS).is_file():
        raise ConfigError(f"{option}: {path} has no {HEAD_WEIGHTS} with the trained weights of its head")
    return head


def _other_bases(one: Source, other: Source) -> tuple[str, str] | None:
    """The names of two bases that are not the same; None if they are."""
    names = [_trained_from(source) for source in (one, other)]
    if names[0] == names[1]:
        return None
    if not one.is_adapter:  # what a whole model began as does not record where it is now
        return None if is_same_model(names[0][0], names[1][0]) else (names[0][0], names[1][0])
    shown = [name if revision is None else f"{name} at {revision}" for name, revision in names]
    local = [Path(source.base.name).expanduser().is_dir() for source in (one, other)]
    same_name = is_same_model(names[0][0], names[1][0]) and names[0][1] == names[1][1]
    if (all(local) or same_name) and weights_hash(one.base) == weights_hash(other.base):
        return None
    return shown[0], shown[1]


def _trained_from(source: Source) -> tuple[str, str | None]:
    if source.is_adapter:
        local = Path(source.base.name).expanduser()
        return (str(local.resolve()) if local.is_dir() else source.base.name), source.base.revision
    return ("" if source.training is None else source.training.model), None


def _describe(head: HeadSettings | None) -> str:
    if head is None:
        return "nothing"
    return f"{head.head}, pooling {head.pooling}, {head.max_tokens} tokens, keep_turns {head.keep_turns}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
