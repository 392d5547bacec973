"""Build a teacher store in this process: what `build-teacher-cache` does, as functions."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.models.huggingface import lm_head_rows, load_tokenizer
from logitbank.models.workers import Worker
from logitbank.registry import TEACHER_ENGINES
from logitbank.storage.objects import open_objects
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Opening, TeacherOpener
from logitbank.teacher_cache.estimate import Estimate, estimate
from logitbank.teacher_cache.fill import fill
from logitbank.teacher_cache.plan import TeacherPlan, make_plan
from logitbank.teacher_cache.scoring import Tally

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A build before any model is loaded.

    Attributes:
        config: of the build.
        teacher: the model that will be asked.
        encoder: made the plan.
        plan: what will be asked.
    """

    config: Config
    teacher: ModelConfig
    encoder: PromptEncoder
    plan: TeacherPlan


def prepare(config: Config, views: Sequence[str] = DEFAULT_VIEWS) -> Prepared:
    """Check that the teacher fits, and encode all that it will be asked.

    Raises:
        ConfigError: a key that the engine cannot honour, a tokenizer or model configuration that cannot be
            opened or does not fit the student's, or see `make_plan`.
        TaskError: see `make_plan`.
    """
    opener = _opener(config)
    opener.check(config)
    teacher = teacher_model(config)
    encoder = PromptEncoder(load_tokenizer(config.model))
    own = _teacher_encoder(config, teacher, encoder)
    _check_ranks(config, teacher, encoder, opener)
    return Prepared(config, teacher, encoder, make_plan(config, encoder, tuple(dict.fromkeys(views)), own))


def estimate_store(config: Config, views: Sequence[str] = DEFAULT_VIEWS) -> Estimate:
    """What `build_store` would do: tokens, bytes and examples, per task and language.

    Raises:
        ConfigError, TaskError: see `prepare`.
    """
    return estimate(config, prepare(config, views).plan)


def build_store(
    config: Config, url: str, views: Sequence[str] = DEFAULT_VIEWS, *, worker: Worker | None = None
) -> Tally:
    """Write every shard that a store still lacks; one that is complete is left as it is.

    Args:
        config: of the build; recorded in the store.
        url: directory or fsspec URL of the store.
        views: which to fill.
        worker: which of several processes that fill one store this is; None for one on its own.

    Raises:
        ConfigError, TaskError: see `prepare`; or a model that cannot be opened.
        StoreError: a store that cannot be written, or was begun with other settings.
        MemoryExhaustedError: not even single sequences fit in memory.
    """
    opener = _opener(config)
    opener.check(config)
    opener.require(config, os.environ)
    open_objects(url).require_writable()  # before prompts are encoded and a large model is loaded for nothing
    prepared = prepare(config, views)
    engine = opener.open(
        Opening(
            config=config,
            model=prepared.teacher,
            tokenizer_size=len(prepared.encoder.tokenizer),
            longest=prepared.plan.longest,
            environment=os.environ,
        )
    )
    return fill(url, config, prepared.plan, prepared.encoder, engine, worker=worker)


def teacher_model(config: Config) -> ModelConfig:
    """The teacher: `teacher.model`, or the student's base model."""
    name = config.teacher.model or config.model.name
    revision = config.teacher.revision if config.teacher.model else config.model.revision
    return ModelConfig(
        name=name,
        revision=revision,
        dtype=config.model.dtype,
        attn_implementation=config.model.attn_implementation,
        trust_remote_code=config.model.trust_remote_code,
    )


def _opener(config: Config) -> TeacherOpener:
    opener: TeacherOpener = TEACHER_ENGINES[config.teacher.engine]
    return opener


def _teacher_encoder(config: Config, teacher: ModelConfig, encoder: PromptEncoder) -> PromptEncoder | None:
    """The encoder of a teacher with a chat template of its own; None where it is the student's.

    Raises:
        ConfigError: other token ids than the student's, for the vocabulary or for an answer's text.
    """
    if teacher.name == config.model.name:
        return None
    name, student = shlex.quote(teacher.name), shlex.quote(config.model.name)
    try:
        other = PromptEncoder(load_tokenizer(teacher))
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.name", "teacher.model", 1)) from None
    if other.tokenizer_hash != encoder.tokenizer_hash:
        raise ConfigError(
            f"teacher.model: expected the tokenizer of {student}, but {name} has another; "
            "logits can only be shared between models with the same token ids"
        )
    if other.template_hash == encoder.template_hash:
        return None
    if not other.answers_like(encoder):
        raise ConfigError(
            f"teacher.model: expected answers with the token ids that the chat template of {student} gives "
            f"them, but that of {name} gives others (a space before the answer); give it the same template"
        )
    if other.end_of_turn_id != encoder.end_of_turn_id:
        theirs, ours = (it.tokenizer.convert_ids_to_tokens(it.end_of_turn_id) for it in (other, encoder))
        logger.info(
            "teacher.model: %s ends a turn with %s, the student with %s: the end of turn carries no teacher term",
            name,
            theirs,
            ours,
        )
    return other


def _check_ranks(config: Config, teacher: ModelConfig, encoder: PromptEncoder, opener: TeacherOpener) -> None:
    rows, taken = min(lm_head_rows(teacher), len(encoder.tokenizer)), opener.spare_ranks
    if config.teacher.top_k > rows - taken:
        less = f" less the {taken} that {config.teacher.engine} needs" if taken else ""
        raise ConfigError(
            f"teacher.top_k: expected at most {rows - taken}, the size of the vocabulary{less}, "
            f"got {config.teacher.top_k}"
        )
