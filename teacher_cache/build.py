"""Fill a store: plan, freeze the base, then every missing shard of every view."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from logitbank.configs import Config, ConfigError, config_to_dict
from logitbank.storage import ExampleRecord, StoreBuilder, StoreSpec, TeacherRows, Vocabulary, open_builder
from logitbank.storage.teacher_store.rows import concatenate
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Sequenced, TeacherEngine, batches_by_length
from logitbank.teacher_cache.plan import TeacherPlan
from logitbank.teacher_cache.prefixes.sharing import shared_prefixes
from logitbank.teacher_cache.sampling import Sampling, uniforms

logger = logging.getLogger(__name__)

PILOT_TOKENS = 2048  # answer tokens whose top K the vocabulary is learnt from


@dataclass
class Tally:
    """What a build did.

    Attributes:
        tokens: of all sequences, prompt and answer.
        reused_tokens: those of them that stood in a shared prefix and were not computed again.
        padded_tokens: the others, padding included.
        answer_tokens: tokens that have teacher rows now.
        fallen_shards: shards scored with less than the configured token budget, for want of memory.
        seconds: from the first batch to the last write.
    """

    tokens: int = 0
    reused_tokens: int = 0
    padded_tokens: int = 0
    answer_tokens: int = 0
    fallen_shards: int = 0
    seconds: float = 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the tokens run through the model that was padding."""
        return 1 - (self.tokens - self.reused_tokens) / self.padded_tokens if self.padded_tokens else 0.0

    def add(self, other: Tally) -> None:
        """Count another tally's tokens."""
        self.tokens += other.tokens
        self.reused_tokens += other.reused_tokens
        self.padded_tokens += other.padded_tokens
        self.answer_tokens += other.answer_tokens


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
        _spec(config, plan, encoder, engine, vocab_size),
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
        _run(builder, plan, engine, config, todo, tally, quiet=bool(worker))
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
    total = sum(
        len(plan.views[view].prompts[i]) + len(plan.examples[i].answer_ids) - 1
        for view, shard in todo
        for i in builder.plan.examples_of(shard)
    )
    shared = _shared_tokens(builder, plan, engine, {view for view, _ in todo})
    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        tqdm(total=total, desc="teacher", unit=" tokens", unit_scale=True, disable=True if quiet else None) as bar,
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
            rows, used = score(sequences, engine, stored_ranks(config), budget, tally, bar.update)
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
    answer_ids = np.asarray(plan.examples[example].answer_ids, dtype=np.int32)
    return Sequenced(plan.views[view].prompts[example], answer_ids, shared)


def _with_sampling(sequence: Sequenced, example: ExampleRecord, config: Config) -> Sequenced:
    """The sequence with what to draw for it: numbers of its own, whichever view, worker or run asks."""
    if config.teacher.signal == "topk":
        return sequence
    numbers = uniforms(config.seed, example.example_id, len(example.answer_ids))
    return replace(sequence, sampling=Sampling(config.teacher.draws, config.teacher.signal == "hybrid", numbers))


def stored_ranks(config: Config) -> int:
    """K: draws from all tokens need no ranks, but the first choice is kept for all that is reported of it."""
    return 1 if config.teacher.signal == "sampled" else config.teacher.top_k


def _shared_tokens(
    builder: StoreBuilder, plan: TeacherPlan, engine: TeacherEngine, views: Iterable[str]
) -> dict[str, NDArray[np.int32]]:
    """Per view, what each prompt shares with others: a function of the whole plan, so the same for every worker."""
    if not engine.reuses_prefixes:
        return {}
    shards = builder.plan.answer_start // builder.plan.shard_tokens
    return {view: shared_prefixes(plan.views[view].prompts, shards) for view in sorted(views)}


def score(
    sequences: Sequence[Sequenced],
    engine: TeacherEngine,
    top_k: int,
    token_budget: int,
    tally: Tally,
    advance: Callable[[int], object] = lambda tokens: None,
) -> tuple[TeacherRows, int]:
    """Teacher rows of all sequences in the given order, run in batches of a shared prefix and similar length.

    Where memory runs out, all of them are run again with half the budget: the numbers are then a function
    of the sequences and of the budget that is returned, not of the place where memory ran out.

    Returns:
        The rows, and the token budget that they were computed with.

    Raises:
        ConfigError: not even single sequences fit in memory.
    """
    budget = token_budget
    while True:
        attempt = Tally()
        try:
            rows = _score_within(sequences, engine, top_k, budget, attempt, advance)
        except torch.OutOfMemoryError as error:
            advance(-attempt.tokens)
            if budget <= min(item.own for item in sequences):
                raise ConfigError(
                    f"teacher.batch_tokens: a sequence of up to {max(map(len, sequences))} tokens does not fit in "
                    "memory on its own; lower data.max_teacher_tokens, or see teacher.device_map, "
                    "teacher.load_in_8bit and teacher.load_in_4bit"
                ) from error
            budget //= 2
            logger.warning("out of memory; going on with batches of %d tokens", budget)
        else:
            tally.add(attempt)
            return rows, budget


def _score_within(
    sequences: Sequence[Sequenced],
    engine: TeacherEngine,
    top_k: int,
    token_budget: int,
    tally: Tally,
    advance: Callable[[int], object],
) -> TeacherRows:
    """`score` with a budget that must do."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, item in enumerate(sequences):
        groups[item.prefix].append(i)
    parts: dict[int, TeacherRows] = {}
    for members in groups.values():
        own = [sequences[i].own for i in members]
        for chosen in [list(range(len(own)))] if engine.batches_itself else batches_by_length(own, token_budget):
            batch = [members[j] for j in chosen]
            rows = engine.score([sequences[i] for i in batch], top_k)
            start = 0
            for i in batch:
                stop = start + len(sequences[i].answer_ids)
                parts[i] = rows.take(np.arange(start, stop))
                start = stop
            tokens = sum(len(sequences[i]) for i in batch)
            tally.tokens += tokens
            tally.reused_tokens += sum(sequences[i].shared for i in batch)
            tally.padded_tokens += sum(own) if engine.batches_itself else len(batch) * sequences[batch[0]].own
            tally.answer_tokens += start
            advance(tokens)
    return concatenate([parts[i] for i in range(len(sequences))])


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
        tokens -= len(record.answer_ids)
        yield position


def _spec(
    config: Config, plan: TeacherPlan, encoder: PromptEncoder, engine: TeacherEngine, vocab_size: int
) -> StoreSpec:
    # The students of `languages: [hi]` may learn from English examples.
    languages = dict.fromkeys([*config.languages, *(record.language for record in plan.examples)])
    return StoreSpec(
        model=config.model.name,
        tokenizer_size=len(encoder.tokenizer),
        vocab_size=vocab_size,
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
