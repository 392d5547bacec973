"""What a store says of the build that made it: its inputs, and those of each view."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.configs import Config, config_to_dict
from logitbank.storage import StoreSpec
from logitbank.tasks.outside import source_hashes
from logitbank.teacher_cache.engines.base import TeacherEngine
from logitbank.teacher_cache.estimate import stored_ranks
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.plan import TeacherPlan, ViewPlan
from logitbank.teacher_cache.questions import Questions

logger = logging.getLogger(__name__)


def languages_of(config: Config, plan: TeacherPlan) -> tuple[str, ...]:
    """A store's languages: the students of `languages: [hi]` may learn from English examples."""
    return tuple(dict.fromkeys([*config.languages, *plan.languages]))


def spec_of(config: Config, questions: Questions, plan: TeacherPlan, engine: TeacherEngine) -> StoreSpec:
    """What a store is built from."""
    told: dict[str, Any] = {"split": questions.split} if questions.split != TRAIN else {}
    if questions.answers is not None:
        told["answers"] = dict(questions.answers)
    encoder, sources = questions.encoder, source_hashes(config.tasks)
    return StoreSpec(
        model=config.model.name,
        tokenizer_size=len(encoder.tokenizer),
        vocab_size=engine.vocab_size,
        tokenizer_hash=encoder.tokenizer_hash,
        tasks=tuple(config.tasks),
        languages=languages_of(config, plan),
        top_k=stored_ranks(config),
        signal=config.teacher.signal,
        draws=0 if config.teacher.signal == "topk" else config.teacher.draws,
        encoding=config.store.encoding,
        shard_tokens=config.store.shard_tokens,
        chunk_tokens=config.store.chunk_tokens,
        teacher={**engine.identity(), "batch_tokens": config.teacher.batch_tokens},
        identity={"template": encoder.template_hash, "seed": config.seed, **_of_another_teacher(questions), **told},
        config={**config_to_dict(config), **({"task_sources": sources} if sources else {})},
    )


def _of_another_teacher(questions: Questions) -> dict[str, Any]:
    """What a teacher's own chat template and tokens add to a store's identity; nothing where they are the student's."""
    said: dict[str, Any] = {}
    if questions.teacher_template is not None:
        said |= {"teacher_template": questions.teacher_template, "untaught": list(questions.untaught)}
    if questions.excluded:
        said["excluded"] = _runs(questions.excluded)
    return said


def _runs(ids: Sequence[int]) -> list[list[int]]:
    """Ascending ids as runs [first, last]."""
    runs: list[list[int]] = []
    for token in ids:
        if runs and token == runs[-1][1] + 1:
            runs[-1][1] = token
        else:
            runs.append([token, token])
    return runs


def name_changed_sources(recorded: Mapping[str, Any], config: Config) -> None:
    """Say which tasks from outside have another source than when the store was started: what they ask is the same."""
    before, now = recorded.get("task_sources", {}), source_hashes(config.tasks)
    if changed := [name for name in now if name in before and before[name] != now[name]]:
        logger.info(
            "source changed since the store was started, but prompts and answers are the same: %s", ", ".join(changed)
        )


def describe_view(
    view: str, questions: Questions, plan: ViewPlan, config: Config
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What decides a view's content, and what is said of it besides."""
    identity = {"prompts": plan.prompt_hash, "selection": config.fewshot.selection if view != "zeroshot" else None}
    details: dict[str, Any] = {"demonstrations": plan.demonstrations, "demonstrations_dropped": dict(plan.dropped)}
    if questions.teacher_tokenizer is not None:
        details["teacher_tokenizer_hash"] = questions.teacher_tokenizer
    return identity, details
