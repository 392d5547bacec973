"""Checkpoints as evaluation sees them: PEFT adapter or full model, and what training wrote beside it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitbank.configs import ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.experiment import (
    CONDITION_NAME,
    CONDITIONS,
    TRAINING_RECORD,
    TrainingRecord,
    condition_of,
    is_same_model,
)

ADAPTER_CONFIG = "adapter_config.json"
FINAL = "final"  # what training calls its last checkpoint
STEP_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A directory that PEFT or transformers can load.

    Attributes:
        path: the directory.
        is_adapter: a PEFT adapter, to be put on the base model; otherwise a whole model.
        training: what the training run said of itself; None if another program trained the checkpoint.
    """

    path: Path
    is_adapter: bool
    training: TrainingRecord | None

    @property
    def step(self) -> int | None:
        """Optimizer step after which it was written, where known."""
        if self.training is not None and self.training.step is not None:
            return self.training.step
        return _step_of_name(self.path)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The condition of its student, and the one that its record has where an earlier version gave another name.

        Empty where another program trained it.
        """
        if self.training is None:
            return ()
        record = self.training
        found = condition_of(record.view, teacher=record.teacher, model=record.model)
        return tuple(dict.fromkeys((found, record.condition)))

    @property
    def model(self) -> ModelConfig:
        """Where it is, as a model to be opened."""
        return ModelConfig(name=str(self.path.resolve()))


def open_checkpoint(path: Path, *, option: str = "--checkpoint") -> Checkpoint:
    """Recognise a checkpoint directory.

    Args:
        path: the directory.
        option: what names it, for messages.

    Raises:
        ConfigError: no such directory, no model in it, or an unreadable `training.json`.
    """
    if not path.is_dir():
        raise ConfigError(f"{option}: no directory {path}; expected an adapter or a model that training wrote")
    is_adapter = (path / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (path / "config.json").is_file():
        near = [child.name for child in sorted(path.glob("checkpoint-*"), key=lambda child: _step_of_name(child) or 0)]
        near += [FINAL] if (path / FINAL).is_dir() else []
        hint = f"; it holds {', '.join(near[-6:])}: give one of them" if near else ""
        raise ConfigError(
            f"{option}: {path} holds neither {ADAPTER_CONFIG} (an adapter) nor config.json (a model){hint}"
        )
    return Checkpoint(path, is_adapter, TrainingRecord.read(path))


def checkpoints_at_steps(path: Path, steps: Sequence[int]) -> list[Checkpoint]:
    """The checkpoint of each step, or PATH itself without steps.

    `PATH/checkpoint-<step>`; of the last step `PATH/final`, where training writes no other.

    Raises:
        ConfigError: a step that has no checkpoint; says which there are.
    """
    if not steps:
        return [open_checkpoint(path)]
    if not path.is_dir():
        raise ConfigError(f"--checkpoint: no directory {path}")
    found = {step: child for child in path.glob("checkpoint-*") if (step := _step_of_name(child)) and child.is_dir()}
    if (path / FINAL).is_dir():
        final = open_checkpoint(path / FINAL)
        if final.step is not None:
            found.setdefault(final.step, final.path)
    for step in steps:
        if step not in found:
            known = ", ".join(map(str, sorted(found))) or "none"
            raise ConfigError(f"--steps: {path} has no checkpoint of step {step}; its steps are {known}")
    return [open_checkpoint(found[step]) for step in steps]


def opened_models(model: ModelConfig, checkpoint: Checkpoint | None) -> tuple[ModelConfig, ModelConfig]:
    """Whose weights are loaded, an adapter coming on top, and whose tokenizer."""
    if checkpoint is None or checkpoint.is_adapter:
        return model, model
    own = dataclasses.replace(model, name=checkpoint.model.name, revision=None)
    return own, own if (checkpoint.path / "tokenizer_config.json").is_file() else model


def trained_from(model: ModelConfig, checkpoints: Sequence[Checkpoint]) -> ModelConfig:
    """The model, or the one of its fallbacks that checkpoints were trained from because it did not fit into memory."""
    for checkpoint in checkpoints:
        trained = model.name if checkpoint.training is None else checkpoint.training.model
        for name in model.fallbacks:
            if is_same_model(trained, name) and not is_same_model(trained, model.name):
                return dataclasses.replace(model, name=name, revision=None)
    return model


def check_model(model: str, checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse to evaluate a checkpoint under the name of another model than it was trained from.

    A hub id and a local copy of it count as the same, see `is_same_model`.

    Raises:
        ConfigError: says both names.
    """
    for checkpoint in checkpoints:
        trained = model if checkpoint.training is None else checkpoint.training.model
        if not is_same_model(trained, model):
            raise ConfigError(f"model.name: expected {trained}, from which {checkpoint.path} was trained, got {model}")


def asked_condition(given: str | None, checkpoints: Sequence[Checkpoint]) -> str:
    """The condition that is given, or the one that the checkpoints were trained for.

    Raises:
        ConfigError: none is given, and the checkpoints do not say one.
    """
    if given is not None:
        return given
    if not checkpoints:
        raise ConfigError("--condition: expected a name, got none; use base or fewshot, or add --checkpoint DIR")
    for checkpoint in checkpoints:
        if not checkpoint.conditions:
            raise ConfigError(
                f"--condition: expected a name, got none, and {checkpoint.path} has no {TRAINING_RECORD} that names it"
            )
    return checkpoints[0].conditions[0]  # all are of one training run


def check_condition(condition: str, checkpoints: Sequence[Checkpoint], *, new: bool = False) -> None:
    """Refuse a condition name that says something else than what would be evaluated.

    Args:
        condition: the name.
        checkpoints: what would be evaluated; empty for the model before training.
        new: whether a name that is not one of `CONDITIONS` is meant.

    Raises:
        ConfigError: a malformed or unknown name, an untrained condition with a checkpoint, a trained one
            without, or one that says something else of the teacher than the checkpoint's record.
    """
    if not CONDITION_NAME.fullmatch(condition):
        raise ConfigError(f"--condition: expected letters, digits and ._+- only, got {condition!r}")
    known = CONDITIONS.get(condition)
    if known is None:
        if new:
            return
        near = difflib.get_close_matches(condition, CONDITIONS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"--condition: expected one of {', '.join(CONDITIONS)}, got {condition!r}; {hint}"
            "add --new-condition to use a name of your own"
        )
    if not known.trained and checkpoints:
        raise ConfigError(
            f"--condition: {condition} is the model before training and takes no --checkpoint; "
            "leave it out, or use another condition name"
        )
    if known.trained and not checkpoints:
        raise ConfigError(f"--condition: {condition} is a trained model; add --checkpoint DIR")
    for checkpoint in checkpoints:
        names = checkpoint.conditions
        if names and condition not in names:
            raise ConfigError(
                f"--condition: {checkpoint.path} was trained {_taught_by(checkpoint)}, which is {names[0]}, "
                f"got {condition}; use {names[0]}, or a name of your own with --new-condition"
            )


def check_template(checkpoint: Checkpoint | None, template: str) -> None:
    """Refuse to evaluate a checkpoint with prompts of another chat template than it was trained with.

    Args:
        checkpoint: to be evaluated.
        template: hash of the template that prompts would be made with.

    Raises:
        ConfigError: the two differ.
    """
    trained = None if checkpoint is None or checkpoint.training is None else checkpoint.training.template
    if checkpoint is not None and trained is not None and trained != template:
        raise ConfigError(
            f"--checkpoint: {checkpoint.path} was trained with chat template {trained[:12]}, the tokenizer here has "
            f"{template[:12]}; evaluate it with the tokenizer of the model that its store was built for"
        )


def _taught_by(checkpoint: Checkpoint) -> str:
    record = checkpoint.training
    if record is None or record.view is None:
        return "without a teacher"
    return f"with view {record.view} of {record.teacher or 'its base model'}"


def _step_of_name(path: Path) -> int | None:
    match = STEP_NAME.fullmatch(path.resolve().name)
    return int(match[1]) if match else None
