"""Fill a store: plan, freeze the base, then every missing shard of every view."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from configs import Config, config_to_dict
from storage import ExampleRecord, StoreBuilder, StoreSpec, TeacherRows, open_builder
from storage.rows import concatenate
from tasks.prompts import PromptEncoder
from teacher_cache.engine import Sequenced, TeacherEngine, batches_by_length
from teacher_cache.plan import TeacherPlan

logger = logging.getLogger(__name__)

PILOT_TOKENS = 2048  # answer tokens whose top K order the vocabulary by frequency


@dataclass
class Tally:
    """What a build did: sequence tokens run through the model, padding included and not."""

    tokens: int = 0
    padded_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the tokens that were padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


def build(
    url: str,
    config: Config,
    plan: TeacherPlan,
    encoder: PromptEncoder,
    engine: TeacherEngine,
    *,
    vocab_size: int,
    worker: int | None = None,
    workers: int | None = None,
) -> Tally:
    """Write every shard that the plan's views still lack.

    Args:
        url: the store.
        config: recorded in the store; `teacher.*` and `store.*` are used here.
        plan: what to ask.
        encoder: made the plan.
        engine: the teacher.
        vocab_size: rows of the teacher's `lm_head`.
        worker: this worker's index, if several were started; it does every `workers`-th missing shard.
        workers: how many.

    Raises:
        StoreError: see `storage.open_builder` and `StoreBuilder.write_shard`.
    """
    tally = Tally()
    first_view = next(iter(plan.views))
    with open_builder(
        url,
        _spec(config, encoder, engine, vocab_size),
        plan.examples,
        plan.validation,
        vocabulary=lambda: _vocabulary(plan, first_view, engine, config, len(encoder.tokenizer)),
        worker=worker,
        workers=workers,
    ) as builder:
        todo = []
        for view, view_plan in plan.views.items():
            builder.add_view(view, *_describe_view(view, view_plan, config))
            missing = builder.missing_shards(view)
            if worker is not None and workers is not None:
                missing = [shard for shard in missing if shard % workers == worker]
            done = builder.plan.shards - len(missing)
            if done:
                logger.info("%s: %d of %d shards are done or another worker's", view, done, builder.plan.shards)
            todo += [(view, shard) for shard in missing]
        started = time.monotonic()
        _run(builder, plan, engine, config, todo, tally)
        tally.seconds = time.monotonic() - started
    return tally


def _run(
    builder: StoreBuilder,
    plan: TeacherPlan,
    engine: TeacherEngine,
    config: Config,
    todo: Sequence[tuple[str, int]],
    tally: Tally,
) -> None:
    """Score shard after shard; a thread encodes and writes one while the teacher runs the next."""
    total = sum(
        len(plan.views[view].prompts[i]) + len(plan.examples[i].answer_ids) - 1
        for view, shard in todo
        for i in builder.plan.examples_of(shard)
    )
    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        tqdm(total=total, desc="teacher", unit=" tokens", unit_scale=True, disable=None) as bar,
    ):
        pending: Future[None] | None = None
        for view, shard in todo:
            sequences = [
                Sequenced(plan.views[view].prompts[i], np.asarray(plan.examples[i].answer_ids, dtype=np.int32))
                for i in builder.plan.examples_of(shard)
            ]
            rows = score(sequences, engine, config.teacher.top_k, config.teacher.batch_tokens, tally, bar.update)
            if pending is not None:
                pending.result()
            pending = writer.submit(builder.write_shard, view, shard, rows)
            logger.debug("%s: shard %d scored", view, shard)
        if pending is not None:
            pending.result()


def score(
    sequences: Sequence[Sequenced],
    engine: TeacherEngine,
    top_k: int,
    token_budget: int,
    tally: Tally,
    advance: Callable[[int], object] = lambda tokens: None,
) -> TeacherRows:
    """Teacher rows of all sequences in the given order, run in batches of similar length."""
    parts: dict[int, TeacherRows] = {}
    for batch in batches_by_length([len(item) for item in sequences], token_budget):
        rows = engine.score([sequences[i] for i in batch], top_k)
        start = 0
        for i in batch:
            stop = start + len(sequences[i].answer_ids)
            parts[i] = rows.take(np.arange(start, stop))
            start = stop
        tokens = sum(len(sequences[i]) for i in batch)
        tally.tokens += tokens
        tally.padded_tokens += len(batch) * len(sequences[batch[0]])
        tally.answer_tokens += start
        advance(tokens)
    return concatenate([parts[i] for i in range(len(sequences))])


def _vocabulary(
    plan: TeacherPlan, view: str, engine: TeacherEngine, config: Config, tokenizer_size: int
) -> NDArray[np.int32]:
    """Token ids by how often a pilot's top K holds them, most frequent first, ties by id."""
    pilot = list(_first_tokens(plan.examples, PILOT_TOKENS))
    sequences = [
        Sequenced(plan.views[view].prompts[i], np.asarray(plan.examples[i].answer_ids, dtype=np.int32)) for i in pilot
    ]
    rows = score(sequences, engine, config.teacher.top_k, config.teacher.batch_tokens, Tally())
    frequency = np.bincount(rows.token_ids.ravel(), minlength=tokenizer_size)
    return np.argsort(-frequency, kind="stable").astype(np.int32)


def _first_tokens(examples: Sequence[ExampleRecord], tokens: int) -> Iterator[int]:
    for position, record in enumerate(examples):
        if tokens <= 0:
            return
        tokens -= len(record.answer_ids)
        yield position


def _spec(config: Config, encoder: PromptEncoder, engine: TeacherEngine, vocab_size: int) -> StoreSpec:
    return StoreSpec(
        model=config.model.name,
        tokenizer_size=len(encoder.tokenizer),
        vocab_size=vocab_size,
        tokenizer_hash=encoder.tokenizer_hash,
        tasks=tuple(config.tasks),
        languages=tuple(config.languages),
        top_k=config.teacher.top_k,
        encoding=config.store.encoding,
        shard_tokens=config.store.shard_tokens,
        chunk_tokens=config.store.chunk_tokens,
        teacher={**engine.identity(), "batch_tokens": config.teacher.batch_tokens},
        identity={"template": encoder.template_hash, "seed": config.seed},
        config=config_to_dict(config),
    )


def _describe_view(view: str, plan: Any, config: Config) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    identity = {"prompts": plan.prompt_hash, "selection": config.fewshot.selection if view != "zeroshot" else None}
    dropped: Counter[tuple[str, str]] = plan.dropped
    details = {
        "demonstrations": int(sum(plan.demonstrations)),
        "demonstrations_dropped": {f"{task}/{lang}": count for (task, lang), count in sorted(dropped.items()) if count},
    }
    return identity, details
