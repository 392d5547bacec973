"""Fill a store: freeze its base, then score and write every missing shard of every view."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config, config_to_dict
from logitbank.models.workers import Worker
from logitbank.progress import Progress
from logitbank.storage import ExampleRecord, StoreBuilder, StoreSpec, Vocabulary, open_builder
from logitbank.tasks.outside import source_hashes
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Sequenced, TeacherEngine
from logitbank.teacher_cache.estimate import stored_ranks
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.plan import TeacherPlan
from logitbank.teacher_cache.prefixes.sharing import shared_prefixes
from logitbank.teacher_cache.sampling import Sampling, uniforms
from logitbank.teacher_cache.scoring import Tally, score

logger = logging.getLogger(__name__)

PILOT_TOKENS = 2048  # answer tokens whose top K the vocabulary is learnt from


def fill(
    url: str,
    config: Config,
    plan: TeacherPlan,
    encoder: PromptEncoder,
    engine: TeacherEngine,
    *,
    worker: Worker | None = None,
) -> Tally:
    """Write every shard that the plan's views still lack.

    Args:
        url: the store.
        config: recorded in the store; `teacher.*` and `store.*` are used here.
        plan: what to ask.
        encoder: made the plan.
        engine: the teacher.
        worker: which of several this process is: of n, it does every n-th missing shard; None does all.

    Raises:
        StoreError: see `storage.open_builder` and `StoreBuilder.write_shard`.
    """
    tally = Tally()
    first_view = next(iter(plan.views))
    with open_builder(
        url,
        _spec(config, plan, encoder, engine),
        plan.examples,
        plan.validation,
        vocabulary=lambda: _vocabulary(plan, first_view, engine, config, len(encoder.tokenizer)),
        worker=worker.index if worker else None,
        workers=worker.count if worker else None,
    ) as builder:
        _name_changed_sources(builder.info.config, config)
        todo = []
        for view in plan.views:
            builder.add_view(
                view,
                *_describe_view(view, plan, config),
                sequences="student" if plan.reads_as_student(view) else "context",
            )
            missing = builder.missing_shards(view)
            if worker is not None:
                missing = [shard for shard in missing if shard % worker.count == worker.index]
            done = builder.plan.shards - len(missing)
            if done:
                logger.info("%s: %d of %d shards are done or another worker's", view, done, builder.plan.shards)
            todo += [(view, shard) for shard in missing]
        started = time.monotonic()
        _run(builder, plan, engine, config, todo, tally, quiet=worker is not None and worker.index > 0)
        tally.seconds = time.monotonic() - started
    return tally


def _run(
    builder: StoreBuilder,
    plan: TeacherPlan,
    engine: TeacherEngine,
    config: Config,
    todo: Sequence[tuple[str, int]],
    tally: Tally,
    quiet: bool,
) -> None:
    """Score shard after shard; a thread encodes and writes one while the teacher runs the next."""
    total = sum(len(plan.views[view].sequences[i]) - 1 for view, shard in todo for i in builder.plan.examples_of(shard))
    shared = _shared_tokens(builder, plan, engine, {view for view, _ in todo})
    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        Progress("teacher", total, "tokens", quiet=quiet) as progress,
    ):
        pending: Future[None] | None = None
        for view, shard in todo:
            sequences = [
                _with_sampling(
                    _sequence(plan, view, i, int(shared[view][i]) if view in shared else 0), plan.examples[i], config
                )
                for i in builder.plan.examples_of(shard)
            ]
            budget = config.teacher.batch_tokens
            rows, used = score(sequences, engine, stored_ranks(config), budget, tally, progress.advance)
            details = {}
            if used < budget:
                tally.fallen_shards += 1
                details = {"batch_tokens": used}
            if pending is not None:
                pending.result()
            pending = writer.submit(builder.write_shard, view, shard, rows, details)
            logger.debug("%s: shard %d scored", view, shard)
        if pending is not None:
            pending.result()


def _sequence(plan: TeacherPlan, view: str, example: int, shared: int = 0) -> Sequenced:
    return Sequenced(plan.views[view].sequences[example], shared)


def _with_sampling(sequence: Sequenced, example: ExampleRecord, config: Config) -> Sequenced:
    """The sequence with what to draw for it: numbers of its own, whichever view, worker or run asks."""
    if config.teacher.signal == "topk":
        return sequence
    numbers = uniforms(config.seed, example.example_id, example.sequence.answer_length)
    return replace(sequence, sampling=Sampling(config.teacher.draws, config.teacher.signal == "hybrid", numbers))


def _shared_tokens(
    builder: StoreBuilder, plan: TeacherPlan, engine: TeacherEngine, views: Iterable[str]
) -> dict[str, NDArray[np.int32]]:
    """Per view, what each prompt shares with others: a function of the whole plan, so the same for every worker."""
    if not engine.reuses_prefixes:
        return {}
    shards = builder.plan.answer_start // builder.plan.shard_tokens
    return {view: shared_prefixes(plan.views[view].sequences, shards) for view in sorted(views)}


def _vocabulary(plan: TeacherPlan, view: str, engine: TeacherEngine, config: Config, tokenizer_size: int) -> Vocabulary:
    """The numbering of tokens that the teacher's answers to the first examples suggest."""
    pilot = list(_first_tokens(plan.examples, PILOT_TOKENS))
    sequences = [_sequence(plan, view, i) for i in pilot]
    rows, _ = score(sequences, engine, config.teacher.top_k, config.teacher.batch_tokens, Tally())
    return Vocabulary.learn(rows.token_ids, tokenizer_size)


def _first_tokens(examples: Sequence[ExampleRecord], tokens: int) -> Iterator[int]:
    for position, record in enumerate(examples):
        if tokens <= 0:
            return
        tokens -= record.sequence.answer_length
        yield position


def _spec(config: Config, plan: TeacherPlan, encoder: PromptEncoder, engine: TeacherEngine) -> StoreSpec:
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


def _name_changed_sources(recorded: Mapping[str, Any], config: Config) -> None:
    """Say which tasks from outside have another source than when the store was begun: what they ask is the same."""
    before, now = recorded.get("task_sources", {}), source_hashes(config.tasks)
    if changed := [name for name in now if name in before and before[name] != now[name]]:
        logger.info("source changed since the store was begun, prompts and answers the same: %s", ", ".join(changed))


def _describe_view(view: str, whole: TeacherPlan, config: Config) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    plan = whole.views[view]
    identity = {"prompts": plan.prompt_hash, "selection": config.fewshot.selection if view != "zeroshot" else None}
    dropped = {f"{task}/{language}": count for (task, language), count in sorted(plan.dropped.items()) if count}
    details: dict[str, Any] = {"demonstrations": int(sum(plan.demonstrations)), "demonstrations_dropped": dropped}
    if whole.teacher_tokenizer is not None:
        details["teacher_tokenizer_hash"] = whole.teacher_tokenizer
    return identity, details
