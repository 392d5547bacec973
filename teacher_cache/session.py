"""An open store with its teacher: which shards are missing, and any of them scored and written."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.models.workers import Worker
from logitbank.storage import ExampleRecord, StoreBuilder, Vocabulary, open_builder
from logitbank.storage.objects import open_objects
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.description import describe_view, name_changed_sources, spec_of
from logitbank.teacher_cache.engines.base import Opening, Sequenced, TeacherEngine
from logitbank.teacher_cache.estimate import stored_ranks
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.plan import TeacherPlan
from logitbank.teacher_cache.prefixes.sharing import shared_prefixes
from logitbank.teacher_cache.preparation import opener_of, prepare
from logitbank.teacher_cache.sampling import Sampling, uniforms
from logitbank.teacher_cache.scoring import Tally, score

logger = logging.getLogger(__name__)

PILOT_TOKENS = 2048  # answer tokens whose top K the vocabulary is learnt from


@dataclass(frozen=True)
class ShardWork:
    """One shard that is not done.

    Attributes:
        view: whose.
        shard: its index.
        tokens: that the teacher reads for it.
    """

    view: str
    shard: int
    tokens: int


class Session:
    """A store that is open for writing, with the teacher that fills it; made by `open_session`."""

    def __init__(self, builder: StoreBuilder, config: Config, plan: TeacherPlan, engine: TeacherEngine) -> None:
        self._builder = builder
        self._config = config
        self._plan = plan
        self._engine = engine

    @property
    def shards(self) -> dict[str, int]:
        """View -> number of its shards, done or not."""
        return {view: self._builder.plan_of(view).shards for view in self._plan.views}

    def missing(self) -> list[ShardWork]:
        """Every shard that no manifest marks as done, whoever is to do it, view after view."""
        return [
            ShardWork(view, shard, self._tokens(view, shard))
            for view in self._plan.views
            for shard in self._builder.missing_shards(view)
        ]

    def fill(self, work: Sequence[ShardWork], advance: Callable[[int], object] = lambda tokens: None) -> Tally:
        """Score and write some shards; a thread encodes and writes one while the teacher runs the next.

        Args:
            work: shards that are not done.
            advance: called with the tokens that the teacher has read, as they are; negative for tokens that have to
                be read again.

        Raises:
            StoreError: a store that cannot be written.
            MemoryExhaustedError: not even single sequences fit in memory.
        """
        tally, started = Tally(), time.monotonic()
        budget = self._config.teacher.batch_tokens
        with ThreadPoolExecutor(max_workers=1) as writer:
            pending: Future[None] | None = None
            for item in work:
                sequences = self._sequences(item.view, item.shard)
                rows, used = score(sequences, self._engine, stored_ranks(self._config), budget, tally, advance)
                details = {}
                if used < budget:
                    tally.fallen_shards += 1
                    details = {"batch_tokens": used}
                if pending is not None:
                    pending.result()
                pending = writer.submit(self._builder.write_shard, item.view, item.shard, rows, details)
                logger.debug("%s: shard %d scored", item.view, item.shard)
            if pending is not None:
                pending.result()
        tally.seconds = time.monotonic() - started
        return tally

    def _tokens(self, view: str, shard: int) -> int:
        sequences = self._plan.views[view].sequences
        return sum(len(sequences[i]) - 1 for i in self._builder.plan_of(view).examples_of(shard))

    def _sequences(self, view: str, shard: int) -> list[Sequenced]:
        """What the teacher reads for the examples of a shard."""
        found, shared = self._plan.views[view].sequences, self._shared.get(view)
        return [
            _with_sampling(
                Sequenced(found[i], 0 if shared is None else int(shared[i])), self._plan.examples[i], self._config
            )
            for i in self._builder.plan_of(view).examples_of(shard)
        ]

    @cached_property
    def _shared(self) -> dict[str, NDArray[np.int32]]:
        """Per view, what each prompt shares with others: a function of the whole plan, so the same for all workers."""
        if not self._engine.reuses_prefixes:
            return {}
        units = self._builder.plan.answer_start // self._builder.plan.shard_tokens
        return {view: shared_prefixes(found.sequences, units) for view, found in self._plan.views.items()}


@contextlib.contextmanager
def open_session(
    config: Config,
    url: str,
    views: Sequence[str] = DEFAULT_VIEWS,
    *,
    split: str = TRAIN,
    worker: Worker | None = None,
) -> Iterator[Session]:
    """Plan a build, or find its plan in the store; load the teacher; create the store's base, or check it.

    Args:
        config: of the build; recorded in the store.
        url: directory or fsspec URL of the store.
        views: which to fill.
        split: whose examples: `train`, or `validation` or `test` for evaluation.
        worker: which of several processes that fill one store this is; None for one on its own, which excludes all
            others.

    Raises:
        ConfigError, TaskError: see `prepare`; or a model that cannot be opened.
        StoreError: a store that cannot be written, that another process writes, or that was begun with other
            settings.
    """
    opener = opener_of(config)
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
    with begin(url, config, prepared.plan, prepared.encoder, engine, worker=worker) as session:
        yield session


@contextlib.contextmanager
def begin(
    url: str,
    config: Config,
    plan: TeacherPlan,
    encoder: PromptEncoder,
    engine: TeacherEngine,
    *,
    worker: Worker | None = None,
) -> Iterator[Session]:
    """Open or create a store for a plan and an engine that is loaded.

    Args:
        url: the store.
        config: recorded in the store; `teacher.*` and `store.*` are used here.
        plan: what to ask.
        encoder: made the plan.
        engine: the teacher.
        worker: see `open_session`.

    Raises:
        StoreError: see `storage.open_builder`.
    """
    first_view = next(iter(plan.views))
    with open_builder(
        url,
        spec_of(config, plan, encoder, engine),
        plan.examples,
        plan.validation,
        vocabulary=lambda: _vocabulary(plan, first_view, engine, config, len(encoder.tokenizer)),
        worker=worker.index if worker else None,
        workers=worker.count if worker else None,
    ) as builder:
        name_changed_sources(builder.info.config, config)
        for view in plan.views:
            identity, details = describe_view(view, plan, config)
            builder.add_view(view, identity, details, sequences="student" if plan.reads_as_student(view) else "context")
        yield Session(builder, config, plan, engine)


def _with_sampling(sequence: Sequenced, example: ExampleRecord, config: Config) -> Sequenced:
    """The sequence with what to draw for it: numbers of its own, whichever view, worker or run asks."""
    if config.teacher.signal == "topk":
        return sequence
    numbers = uniforms(config.seed, example.example_id, example.sequence.answer_length)
    return replace(sequence, sampling=Sampling(config.teacher.draws, config.teacher.signal == "hybrid", numbers))


def _vocabulary(plan: TeacherPlan, view: str, engine: TeacherEngine, config: Config, tokenizer_size: int) -> Vocabulary:
    """The numbering of tokens that the teacher's answers to the first examples suggest."""
    pilot = list(_first_tokens(plan.examples, PILOT_TOKENS))
    sequences = [Sequenced(plan.views[view].sequences[i]) for i in pilot]
    rows, _ = score(sequences, engine, config.teacher.top_k, config.teacher.batch_tokens, Tally())
    return Vocabulary.learn(rows.token_ids, tokenizer_size)


def _first_tokens(examples: Sequence[ExampleRecord], tokens: int) -> Iterator[int]:
    for position, record in enumerate(examples):
        if tokens <= 0:
            return
        tokens -= record.sequence.answer_length
        yield position
