"""Checkpoints as evaluation sees them: PEFT adapter or full model, and what training wrote beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
TRAINED_CONDITIONS = {"finetuned": None, "distilled": "fewshot", "control": "zeroshot"}  # name -> teacher view
UNTRAINED_CONDITIONS = ("base", "fewshot")
CONDITION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A directory that PEFT or transformers can load.

    Attributes:
        path: the directory.
        is_adapter: a PEFT adapter, to be put on the base model; otherwise a whole model.
        training: content of `training.json`; empty where another program trained the checkpoint.
    """

    path: Path
    is_adapter: bool
    training: Mapping[str, Any]

    @property
    def step(self) -> int | None:
        """Optimizer step after which it was written, where known."""
        step = self.training.get("step")
        if step is not None:
            return int(step)
        match = re.fullmatch(r"checkpoint-(\d+)", self.path.resolve().name)
        return int(match[1]) if match else None

    def identity(self) -> str:
        """Text that changes when other weights are put under the same path."""
        if "run" in self.training:
            return f"{self.training['run']}/{self.step}"
        weights = sorted(self.path.glob("*.safetensors")) + sorted(self.path.glob("*.bin"))
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for file in weights:
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()


def open_checkpoint(path: Path) -> Checkpoint:
    """Recognise a checkpoint directory.

    Raises:
        ConfigError: no such directory, no model in it, or an unreadable `training.json`.
    """
    if not path.is_dir():
        raise ConfigError(f"--checkpoint: no directory {path}; expected an adapter or a model that training wrote")
    is_adapter = (path / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (path / "config.json").is_file():
        near = sorted(child.name for child in path.glob("checkpoint-*")) + (
            ["final"] if (path / "final").is_dir() else []
        )
        hint = f"; it holds {', '.join(near[:6])}: give one of them" if near else ""
        raise ConfigError(
            f"--checkpoint: {path} holds neither {ADAPTER_CONFIG} (an adapter) nor config.json (a model){hint}"
        )
    training: Mapping[str, Any] = {}
    file = path / "training.json"
    if file.exists():
        try:
            training = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--checkpoint: {file} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(training, dict):
            raise ConfigError(f"--checkpoint: {file}: expected a JSON object, got {type(training).__name__}")
    return Checkpoint(path, is_adapter, training)


def checkpoints_at_steps(path: Path, steps: list[int]) -> list[Checkpoint]:
    """The checkpoint of each step, or PATH itself without steps.

    `PATH/checkpoint-<step>`; of the last step `PATH/final`, where training writes no other.

    Raises:
        ConfigError: a step that has no checkpoint; says which there are.
    """
    if not steps:
        return [open_checkpoint(path)]
    if not path.is_dir():
        raise ConfigError(f"--checkpoint: no directory {path}")
    found = {int(child.name.rpartition("-")[2]): child for child in path.glob("checkpoint-*") if _has_step(child)}
    if (path / "final").is_dir():
        final = open_checkpoint(path / "final")
        if final.step is not None:
            found.setdefault(final.step, final.path)
    for step in steps:
        if step not in found:
            known = ", ".join(map(str, sorted(found))) or "none"
            raise ConfigError(f"--steps: {path} has no checkpoint of step {step}; its steps are {known}")
    return [open_checkpoint(found[step]) for step in steps]


def check_model(model: str, checkpoints: list[Checkpoint]) -> None:
    """Refuse to evaluate a checkpoint under the name of another model than it was trained from.

    Names count as the same where their last parts are: a hub id and a local copy of it.

    Raises:
        ConfigError: says both names.
    """
    for checkpoint in checkpoints:
        trained = str(checkpoint.training.get("model", model))
        if Path(trained).name != Path(model).name:
            raise ConfigError(
                f"model.name: expected {trained}, from which {checkpoint.path} was trained, got {model}; "
                "rows would carry the wrong name"
            )


def check_condition(condition: str, checkpoints: list[Checkpoint]) -> None:
    """Refuse a condition name that says something else than what would be evaluated.

    Raises:
        ConfigError: a malformed name, an untrained condition with a checkpoint, a trained one without,
            or one whose teacher view is not the checkpoint's.
    """
    if not CONDITION_NAME.fullmatch(condition):
        raise ConfigError(f"--condition: expected letters, digits and ._+- only, got {condition!r}")
    if condition in UNTRAINED_CONDITIONS and checkpoints:
        raise ConfigError(
            f"--condition: {condition} is the model before training and takes no --checkpoint; "
            "leave it out, or use another condition name"
        )
    if condition in TRAINED_CONDITIONS and not checkpoints:
        raise ConfigError(f"--condition: {condition} is a trained model; add --checkpoint DIR")
    for checkpoint in checkpoints:
        if condition not in TRAINED_CONDITIONS or "view" not in checkpoint.training:
            continue
        view, expected = checkpoint.training["view"], TRAINED_CONDITIONS[condition]
        if view != expected:
            right = next((name for name, its_view in TRAINED_CONDITIONS.items() if its_view == view), None)
            raise ConfigError(
                f"--condition: {checkpoint.path} was trained with view {view or 'none'}, but {condition} stands for "
                f"view {expected or 'none'}; use {f'{right} or ' if right else ''}a name of your own"
            )


def _has_step(path: Path) -> bool:
    return path.is_dir() and path.name.rpartition("-")[2].isdigit()
