"""The model that writes answers to training examples: which one it is, before it is opened, and what is said of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs import Config, data_settings
from logitbank.evaluation.checkpoints import Checkpoint, check_model, check_template, open_checkpoint, opened_models
from logitbank.evaluation.identity import PACKAGES, examine
from logitbank.models.huggingface import context_tokens, load_tokenizer
from logitbank.models.vllm import vllm_version
from logitbank.tasks import TASKS
from logitbank.tasks.prompts import PromptEncoder

OF_TRAINING = ("run", "condition", "model", "view", "teacher", "store_fingerprint", "view_fingerprint", "step")


@dataclass(frozen=True)
class Writer:
    """A model that answers.

    Attributes:
        config: of the student that learns from the answers.
        opens: what the engine is opened with: its `model` is the writer, or the base of the writer's adapter.
        checkpoint: the writer's weights where they lie in a directory; None for a model of the hub.
        encoder: makes its prompts.
        same_tokens: whether its token ids are the student's.
        weights: hash of its weights.
    """

    config: Config
    opens: Config
    checkpoint: Checkpoint | None
    encoder: PromptEncoder
    same_tokens: bool
    weights: str

    @property
    def seed(self) -> int:
        """Draws the tokens."""
        return self.config.seed if self.config.sampling.seed is None else self.config.sampling.seed

    def prompt_limit(self, task: str) -> int:
        """Most tokens of prompt and answer together, for the student that learns from them and for the writer."""
        limit = self.config.data.max_student_tokens or int(TASKS[task].max_student_tokens)
        known = (
            context_tokens(model) for model in (self.config.model, opened_models(self.opens.model, self.checkpoint)[0])
        )
        return min([limit, *(most for most in known if most is not None)])

    def answer_limit(self, task: str) -> int:
        """Most tokens of an answer."""
        return answer_limit(self.config, task)

    def record(self, examples: str) -> Mapping[str, Any]:
        """What the file of answers says of itself.

        Args:
            examples: hash of those that are answered.
        """
        config, training = self.config, None if self.checkpoint is None else self.checkpoint.training
        sampling = config.sampling
        return {
            "model": sampling.model or config.model.name,
            "weights": self.weights,
            "training": None if training is None else {name: getattr(training, name) for name in OF_TRAINING},
            "sampling": {
                "engine": config.evaluation.engine,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "n": sampling.n,
                "seed": self.seed,
                "max_new_tokens": {task: self.answer_limit(task) for task in config.tasks},
                "batch_tokens": config.evaluation.batch_tokens,
            },
            "prompts": {
                "examples": examples,
                "chat": str(data_settings(config).chat),
                "tokenizer": self.encoder.tokenizer_hash,
                "template": self.encoder.template_hash,
                "max_tokens": {task: self.prompt_limit(task) for task in config.tasks},
            },
            "versions": self._versions(),
        }

    def _versions(self) -> dict[str, str]:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        if self.config.evaluation.engine == "vllm":
            versions["vllm"] = vllm_version("evaluation.engine")
        return versions


def answer_limit(config: Config, task: str) -> int:
    """Most tokens of an answer that is sampled."""
    given = config.sampling.max_new_tokens or config.evaluation.max_new_tokens.get(task)
    return given or int(TASKS[task].max_new_tokens)


def find_writer(config: Config) -> Writer:
    """The model that `sampling.model` names, or the student's base model.

    Raises:
        ConfigError: no such model; an adapter of another model than `model.name`, or a checkpoint that was trained
            with another chat template.
    """
    name, checkpoint, opens = config.sampling.model, None, config
    if name is not None and Path(name).is_dir():
        checkpoint = open_checkpoint(Path(name), option="sampling.model")
        if checkpoint.is_adapter:
            check_model(config.model.name, [checkpoint])
    elif name is not None:
        opens = dataclasses.replace(config, model=dataclasses.replace(config.model, name=name, revision=None))
    limits = {task: answer_limit(config, task) for task in config.tasks}  # an engine may make room for them
    opens = dataclasses.replace(opens, evaluation=dataclasses.replace(opens.evaluation, max_new_tokens=limits))
    student, own = config.model, opened_models(opens.model, checkpoint)[1]
    encoder = PromptEncoder(load_tokenizer(own))
    check_template(checkpoint, encoder.template_hash)
    theirs = encoder if own == student else PromptEncoder(load_tokenizer(student))
    same = encoder.tokenizer_hash == theirs.tokenizer_hash and encoder.stop_ids == theirs.stop_ids
    return Writer(config, opens, checkpoint, encoder, same, examine(opens, checkpoint, encoder).weights)
