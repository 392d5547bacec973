"""What a store says of the build that made it: its inputs, and those of each view."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.configs import Config, config_to_dict
from logitbank.storage import StoreSpec
from logitbank.tasks.outside import source_hashes
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import TeacherEngine
from logitbank.teacher_cache.estimate import stored_ranks
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.plan import TeacherPlan

logger = logging.getLogger(__name__)


def spec_of(config: Config, plan: TeacherPlan, encoder: PromptEncoder, engine: TeacherEngine) -> StoreSpec:
    # The students of `languages: [hi]` may learn from English examples.
    languages = dict.fromkeys([*config.languages, *(record.language for record in plan.examples)])
    told = {"split": plan.split} if plan.split != TRAIN else {}
    sources = source_hashes(config.tasks)
    return StoreSpec(
        model=config.model.name,
        tokenizer_size=len(encoder.tokenizer),
        vocab_size=engine.vocab_size,
        tokenizer_hash=encoder.tokenizer_hash,
        tasks=tuple(config.tasks),
        languages=tuple(languages),
        top_k=stored_ranks(config),
        signal=config.teacher.signal,
        draws=0 if config.teacher.signal == "topk" else config.teacher.draws,
        encoding=config.store.encoding,
        shard_tokens=config.store.shard_tokens,
        chunk_tokens=config.store.chunk_tokens,
        teacher={**engine.identity(), "batch_tokens": config.teacher.batch_tokens},
        identity={"template": encoder.template_hash, "seed": config.seed, **_of_another_teacher(plan), **told},
        config={**config_to_dict(config), **({"task_sources": sources} if sources else {})},
    )


def _of_another_teacher(plan: TeacherPlan) -> dict[str, Any]:
    """What a teacher's own chat template and tokens add to a store's identity; nothing where they are the student's."""
    said: dict[str, Any] = {}
    if plan.teacher_template is not None:
        said |= {"teacher_template": plan.teacher_template, "untaught": list(plan.untaught)}
    if plan.excluded:
        said["excluded"] = _runs(plan.excluded)
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
    """Say which tasks from outside have another source than when the store was begun: what they ask is the same."""
    before, now = recorded.get("task_sources", {}), source_hashes(config.tasks)
    if changed := [name for name in now if name in before and before[name] != now[name]]:
        logger.info("source changed since the store was begun, prompts and answers the same: %s", ", ".join(changed))


def describe_view(view: str, whole: TeacherPlan, config: Config) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    plan = whole.views[view]
    identity = {"prompts": plan.prompt_hash, "selection": config.fewshot.selection if view != "zeroshot" else None}
    dropped = {f"{task}/{language}": count for (task, language), count in sorted(plan.dropped.items()) if count}
    details: dict[str, Any] = {"demonstrations": int(sum(plan.demonstrations)), "demonstrations_dropped": dropped}
    if whole.teacher_tokenizer is not None:
        details["teacher_tokenizer_hash"] = whole.teacher_tokenizer
    return identity, details
