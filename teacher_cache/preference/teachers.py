"""Who scores comparisons: a checkpoint, or a language model as it is, before its weights are loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.experiment import TRAINING_RECORD, TrainingRecord, model_label
from logitbank.models.classifier import ADAPTER_CONFIG, PairClassifier, letter_ids, open_classifier, tokenizer_of
from logitbank.models.fallbacks import choose_model
from logitbank.models.huggingface import context_tokens, load_tokenizer, text_config
from logitbank.models.pair_head import HeadSettings, read_head_settings
from logitbank.models.precision import opened_dtype
from logitbank.models.weights import weights_hash
from logitbank.preference import SEEN_PROMPTS, TASK, SeenPrompts
from logitbank.registry import TASKS
from logitbank.storage import Scorer
from logitbank.tasks.preference import PairPacker
from logitbank.tasks.prompts import PromptEncoder, tokenizer_hash
from logitbank.teacher_cache.pairing import teacher_model

LETTERS_HEAD = "letters"


@dataclass(frozen=True)
class PairTeacher:
    """A teacher of comparisons.

    Attributes:
        config: its `model` is opened; its `data` says how pairs are packed if no checkpoint does.
        checkpoint: a directory that training or export wrote; None for the model as it is.
        settings: its head, and how pairs are packed for it.
        record: what training said of the checkpoint, where it did.
        seen: the prompts that it learned from or was selected on; None if that is unknown.
    """

    config: Config
    checkpoint: Path | None
    settings: HeadSettings
    record: TrainingRecord | None
    seen: SeenPrompts | None

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return self.config.model.name if self.checkpoint is None else str(self.checkpoint)

    @property
    def held_out_fold(self) -> int | None:
        """The fold that its training left out; None if it left none out."""
        return None if self.record is None else self.record.held_out_fold

    @cached_property
    def weights(self) -> str:
        """Hash of all weights that are loaded: an adapter's with its base's."""
        if self.checkpoint is None:
            return weights_hash(self.config.model)
        own = weights_hash(ModelConfig(name=str(self.checkpoint.resolve())))
        if not (self.checkpoint / ADAPTER_CONFIG).is_file():
            return own
        return hashlib.sha256(f"{weights_hash(self.config.model)} {own}".encode()).hexdigest()

    @cached_property
    def packer(self) -> PairPacker:
        """Packs pairs as it was trained to read them."""
        kept = self.settings
        return PairPacker(self._tokenizer, max_tokens=kept.max_tokens, keep_turns=kept.keep_turns, head=kept.head)

    def scorer(self) -> Scorer:
        """What shards say of it."""
        zero_shot = {} if self.seen is not None else {"zero_shot": True}
        return Scorer(self.name, self.weights, self.held_out_fold, self.seen, zero_shot)

    def identity(self, device: torch.device) -> dict[str, Any]:
        """What all folds of a view have in common; the weights are each fold's own."""
        teacher, kept = self.config.teacher, self.settings
        base = self.config.model.name if self.record is None else self.record.model
        quantization = "nf4" if teacher.load_in_4bit else "int8" if teacher.load_in_8bit else None
        return {
            "model": model_label(base),
            "tokenizer": tokenizer_hash(self._tokenizer),
            "template": PromptEncoder(self._tokenizer).template_hash if kept.head == LETTERS_HEAD else None,
            "head": kept.head,
            "pooling": kept.pooling,
            "max_tokens": kept.max_tokens,
            "keep_turns": kept.keep_turns,
            "dtype": opened_dtype("teacher.dtype", teacher.dtype or self.config.model.dtype, device),
            "quantization": quantization,
            "batch_tokens": teacher.batch_tokens,
        }

    def open(self, device: torch.device) -> PairClassifier:
        """Load its weights; ConfigError as of `open_classifier`."""
        teacher = self.config.teacher
        return open_classifier(
            self.config,
            device=device,
            checkpoint=self.checkpoint,
            load_in_4bit=teacher.load_in_4bit,
            load_in_8bit=teacher.load_in_8bit,
            dtype=teacher.dtype,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(tokenizer_of(self.config.model, self.checkpoint))


def find_teacher(config: Config, checkpoint: Path | None, device: torch.device) -> PairTeacher:
    """The teacher that a configuration and `--checkpoint` name.

    A checkpoint ends in what its `classifier.json` says. Without one, a language model, `teacher.model` or
    `model.name`, is asked for the letters A, B and C.

    Args:
        config: of the build.
        checkpoint: of `--checkpoint`.
        device: where it would be opened.

    Raises:
        ConfigError: no such model or head, a checkpoint without a record of what it saw, or letters of several
            tokens.
    """
    record = None if checkpoint is None else TrainingRecord.read(checkpoint)
    config = _with_model(config, record, device)
    place = Path(config.model.name).expanduser() if checkpoint is None else checkpoint
    settings, seen = read_head_settings(place), SeenPrompts.read(place)
    if checkpoint is None:
        if settings is not None and settings.head != LETTERS_HEAD:
            raise ConfigError(f"model.name: {shlex.quote(str(place))} is a trained classifier; give it as --checkpoint")
        config = _asking_letters(config)
    elif seen is None and (record is not None or settings is not None or (checkpoint / ADAPTER_CONFIG).is_file()):
        raise ConfigError(
            f"--checkpoint: {shlex.quote(str(checkpoint))} was trained but has no {SEEN_PROMPTS}, the record of its "
            f"training prompts; expected a directory that train-student or export-model wrote ({TRAINING_RECORD} and "
            "all)"
        )
    elif settings is None:
        config = _asking_letters(dataclasses.replace(config, model=_at(checkpoint, config.model)))
        checkpoint = None
    if settings is None:
        settings = HeadSettings.of(config, int(text_config(config.model).hidden_size))
    teacher = PairTeacher(config, checkpoint, settings, record, seen)
    if settings.head == LETTERS_HEAD:
        letter_ids(teacher._tokenizer)
    return teacher


def _with_model(config: Config, record: TrainingRecord | None, device: torch.device) -> Config:
    """The configuration whose `model` is the teacher, or the base of its adapter."""
    if config.teacher.model is None:
        earlier = None if record is None else record.model
        model = choose_model(config, device, training=False, earlier=earlier)
    else:
        model = dataclasses.replace(teacher_model(config), fallbacks=[])
    return dataclasses.replace(config, model=dataclasses.replace(model, head=config.model.head))


def _at(directory: Path, model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, name=str(directory.resolve()), revision=None)


def _asking_letters(config: Config) -> Config:
    """For a model without a head of its own: letters, and pairs of `data.max_teacher_tokens`.

    Raises:
        ConfigError: the model does not read so many tokens.
    """
    most, asked = context_tokens(config.model), config.data.max_teacher_tokens
    if most is not None and asked is not None and asked > most:
        raise ConfigError(
            f"data.max_teacher_tokens: expected at most {most:,}, the limit of {config.model.name}, got {asked:,}"
        )
    longest = asked or min(TASKS[TASK].max_teacher_tokens, most or TASKS[TASK].max_teacher_tokens)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, head=LETTERS_HEAD),
        data=dataclasses.replace(config.data, max_student_tokens=longest),
    )
