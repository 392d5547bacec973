"""Build a teacher store in this process: what `build-teacher-cache` does, as functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.models.workers import Worker
from logitbank.registry import TEACHER_ENGINES
from logitbank.storage.objects import open_objects
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Opening, TeacherOpener
from logitbank.teacher_cache.estimate import Estimate, estimate
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.fill import fill
from logitbank.teacher_cache.pairing import pair
from logitbank.teacher_cache.plan import TeacherPlan, make_plan
from logitbank.teacher_cache.scoring import Tally


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
    opener = _opener(config)
    opener.check(config)
    pairing = pair(config)
    _check_ranks(config, pairing.rankable, opener)
    plan = make_plan(
        config, pairing.encoder, tuple(dict.fromkeys(views)), pairing.own, split=split, contexts=pairing.contexts
    )
    pairing.check_plan(plan)
    plan.excluded, plan.teacher_tokenizer = pairing.excluded, pairing.teacher_tokenizer
    return Prepared(pairing.teacher, pairing.encoder, plan)


def estimate_store(config: Config, views: Sequence[str] = DEFAULT_VIEWS, *, split: str = TRAIN) -> Estimate:
    """What `build_store` would do: tokens, bytes and examples, per task and language.

    Raises:
        ConfigError, TaskError: see `prepare`.
    """
    return estimate(config, prepare(config, views, split).plan)


def build_store(
    config: Config,
    url: str,
    views: Sequence[str] = DEFAULT_VIEWS,
    *,
    split: str = TRAIN,
    worker: Worker | None = None,
) -> Tally:
    """Write every shard that a store still lacks; one that is complete is left as it is.

    Args:
        config: of the build; recorded in the store.
        url: directory or fsspec URL of the store.
        views: which to fill.
        split: whose examples; see `prepare`.
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
    prepared = prepare(config, views, split)
    engine = opener.open(
        Opening(
            config=config,
            model=prepared.teacher,
            tokenizer_size=len(prepared.encoder.tokenizer),
            excluded=prepared.plan.excluded,
            longest=prepared.plan.longest,
            environment=os.environ,
        )
    )
    return fill(url, config, prepared.plan, prepared.encoder, engine, worker=worker)


def _opener(config: Config) -> TeacherOpener:
    opener: TeacherOpener = TEACHER_ENGINES[config.teacher.engine]
    return opener


def _check_ranks(config: Config, rankable: int, opener: TeacherOpener) -> None:
    taken = opener.spare_ranks
    if config.teacher.top_k > rankable - taken:
        less = f" less the {taken} that {config.teacher.engine} needs" if taken else ""
        raise ConfigError(
            f"teacher.top_k: expected at most {rankable - taken}, the size of the vocabulary{less}, "
            f"got {config.teacher.top_k}"
        )
