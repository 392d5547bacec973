"""A build before any model is loaded: whether the teacher fits, and what it will be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.registry import TEACHER_ENGINES
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import TeacherOpener
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.pairing import pair
from logitbank.teacher_cache.plan import TeacherPlan, make_plan


@dataclass(frozen=True)
class Prepared:
    """A build before any model is loaded.

    Attributes:
        teacher: the model that will be asked.
        encoder: made the plan.
        plan: what will be asked.
    """

    teacher: ModelConfig
    encoder: PromptEncoder
    plan: TeacherPlan


def prepare(config: Config, views: Sequence[str] = DEFAULT_VIEWS, split: str = TRAIN) -> Prepared:
    """Check that the teacher fits, and encode all that it will be asked.

    Args:
        config: of the build.
        views: which to fill.
        split: whose examples: `train`, or `validation` or `test` for evaluation.

    Raises:
        ConfigError: a key that the engine cannot honour, a tokenizer or model configuration that cannot be
            opened or does not fit the student's, or see `make_plan`.
        TaskError: see `make_plan`.
    """
    opener = opener_of(config)
    opener.check(config)
    pairing = pair(config)
    _check_ranks(config, pairing.rankable)
    plan = make_plan(
        config, pairing.encoder, tuple(dict.fromkeys(views)), pairing.own, split=split, contexts=pairing.contexts
    )
    pairing.check_plan(plan)
    plan.excluded, plan.teacher_tokenizer = pairing.excluded, pairing.teacher_tokenizer
    return Prepared(pairing.teacher, pairing.encoder, plan)


def opener_of(config: Config) -> TeacherOpener:
    """The engine that a configuration names, not open yet."""
    opener: TeacherOpener = TEACHER_ENGINES[config.teacher.engine]
    return opener


def _check_ranks(config: Config, rankable: int) -> None:
    if config.teacher.top_k > rankable:
        raise ConfigError(
            f"teacher.top_k: expected at most {rankable}, the size of the vocabulary, got {config.teacher.top_k}"
        )
