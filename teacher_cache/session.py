"""An open store with its teacher: which shards are missing, and any of them scored and written."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from logitbank.authorship import remarks_on_answers
from logitbank.configs import Config
from logitbank.errors import StoreError
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.models.workers import Worker
from logitbank.storage import BuildSite, ExampleRecord, StoreBuilder, Vocabulary, open_site, write_planned
from logitbank.storage.objects import open_writable
from logitbank.teacher_cache.description import describe_view, languages_of, name_changed_sources, spec_of
from logitbank.teacher_cache.engines.base import Opening, Sequenced, TeacherEngine
from logitbank.teacher_cache.estimate import stored_ranks
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.plan import TeacherPlan, check_of, check_of_shard, make_plan, report, require_fitting
from logitbank.teacher_cache.plan_documents import PlanKeys, read_objects_of_plan, read_plan, write_plan
from logitbank.teacher_cache.preparation import opener_of, prepare
from logitbank.teacher_cache.questions import Questions
from logitbank.teacher_cache.sampling import Sampling
from logitbank.teacher_cache.scoring import Tally, score
from logitbank.uniforms import uniforms

logger = logging.getLogger(__name__)

PILOT_TOKENS = 2048  # answer tokens whose top K the vocabulary is learned from


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

    def __init__(
        self, builder: StoreBuilder, config: Config, questions: Questions, plan: TeacherPlan, engine: TeacherEngine
    ) -> None:
        self._builder = builder
        self._config = config
        self._questions = questions
        self._plan = plan
        self._engine = engine

    @property
    def shards(self) -> dict[str, int]:
        """View -> number of its shards, done or not."""
        return {view: self._builder.plan_of(view).shards for view in self._questions.views}

    def missing(self) -> list[ShardWork]:
        """Every shard that no manifest marks as done, for any worker, view after view."""
        return [
            ShardWork(view, shard, int(self._plan.views[view].tokens[shard]))
            for view in self._questions.views
            for shard in self._builder.missing_shards(view)
        ]

    def fill(self, work: Sequence[ShardWork], advance: Callable[[int], object] = lambda tokens: None) -> Tally:
        """Score and write some shards.

        One thread renders the prompts of the next shard and another encodes and writes the latest, while the teacher
        runs.

        Args:
            work: shards that are not done.
            advance: called with the tokens that the teacher has read, as they are; negative for tokens that have to
                be read again.

        Raises:
            StoreError: a store that cannot be written, or prompts that are no longer what was planned.
            MemoryExhaustedError: even single sequences do not fit in memory.
        """
        tally, started = Tally(), time.monotonic()
        budget = self._config.teacher.batch_tokens
        with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
            pending: Future[None] | None = None
            coming = [reader.submit(self._sequences, item.view, item.shard) for item in work[:1]]
            for number, item in enumerate(work):
                sequences = coming.pop().result()
                coming = [reader.submit(self._sequences, it.view, it.shard) for it in work[number + 1 : number + 2]]
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

    def _sequences(self, view: str, shard: int) -> list[Sequenced]:
        """What the teacher reads for the examples of a shard."""
        plan, shared = self._plan.views[view], self._plan.views[view].shared
        if not self._engine.reuses_prefixes:
            shared = None
        found, checks = [], []
        for i in self._builder.plan_of(view).examples_of(shard):
            record, sequence = self._questions.again(view, int(self._plan.sources[i]), int(self._plan.parts[i]))
            checks.append(check_of(record.sequence, sequence))
            depth = 0 if shared is None else int(shared[i])
            found.append(_with_sampling(Sequenced(sequence, depth), record, self._config))
        if check_of_shard(np.array(checks, dtype=np.uint64)) != int(plan.checks[shard]):
            raise StoreError(
                f"view {view}, shard {shard}: expected the prompts and answers that were planned, got different "
                "ones, although data and settings are the same; use the package versions that the store was started "
                "with, or delete its folder plan to plan again"
            )
        return found


@contextlib.contextmanager
def open_session(
    config: Config,
    url: str,
    views: Sequence[str] = DEFAULT_VIEWS,
    *,
    split: str = TRAIN,
    answers: str | None = None,
    worker: Worker | None = None,
) -> Iterator[Session]:
    """Plan a build, or find its plan in the store; load the teacher; create the store's base, or check it.

    Args:
        config: of the build; recorded in the store.
        url: directory or fsspec URL of the store.
        views: which to fill.
        split: split of the examples: `train`, or `validation` or `test` for evaluation.
        answers: file of answers that a model wrote, in place of those that the examples give.
        worker: which of several processes that fill one store this is; None for one on its own, which excludes all
            others.

    Raises:
        ConfigError, TaskError: see `prepare`; or a model that cannot be opened.
        StoreError: a store that cannot be written, that another process writes, or that was
            started with different settings.
    """
    opener = opener_of(config)
    opener.check(config)
    opener.require(config, os.environ)
    open_writable(url)  # before prompts are encoded and a large model is loaded for nothing
    with prepare(config, views, split, answers) as prepared:
        for remark in remarks_on_answers(prepared.questions.answers, prepared.teacher.name):
            logger.warning("warning: %s", remark)

        def open_engine(longest: int) -> TeacherEngine:
            return opener.open(
                Opening(
                    config=config,
                    model=prepared.teacher,
                    tokenizer_size=len(prepared.questions.encoder.tokenizer),
                    excluded=prepared.questions.excluded,
                    longest=longest,
                    environment=os.environ,
                )
            )

        finds = opener.finds_prefixes(config)
        with begin(url, config, prepared.questions, open_engine, finds_prefixes=finds, worker=worker) as session:
            yield session


@contextlib.contextmanager
def begin(
    url: str,
    config: Config,
    questions: Questions,
    open_engine: Callable[[int], TeacherEngine],
    *,
    finds_prefixes: bool = False,
    worker: Worker | None = None,
) -> Iterator[Session]:
    """Open or create a store for what is asked.

    Args:
        url: the store.
        config: recorded in the store; `teacher.*` and `store.*` are used here.
        questions: what to ask.
        open_engine: loads the teacher, given the tokens of the longest sequence.
        finds_prefixes: whether it may reuse beginnings of prompts.
        worker: see `open_session`.

    Raises:
        ConfigError: no example fits the length limits.
        StoreError: see `storage.open_builder`.
    """
    require_fitting(questions)
    index, count = (worker.index, worker.count) if worker else (None, None)
    with open_site(url, worker=index, workers=count) as site:
        keys = PlanKeys(
            questions,
            {
                "shard_tokens": config.store.shard_tokens,
                "chunk_tokens": config.store.chunk_tokens,
                "prefixes": finds_prefixes,
            },
        )
        with site.alone():
            found = _plan(site, keys, config, questions, finds_prefixes, quiet=bool(index))
        report(found.plan.left_out, found.plan.notes)
        engine = open_engine(found.plan.longest)
        with site.alone():
            builder = _open_builder(site, keys, config, questions, found, engine)
        name_changed_sources(builder.info.config, config)
        for view in questions.views:
            identity, details = describe_view(view, questions, found.plan.views[view], config)
            as_student = found.plan.views[view].as_student
            builder.add_view(view, identity, details, sequences="student" if as_student else "context")
        yield Session(builder, config, questions, found.plan, engine)


class _Found(NamedTuple):
    """A plan, and whether the store has it already."""

    plan: TeacherPlan
    stored: bool


def _plan(
    site: BuildSite, keys: PlanKeys, config: Config, questions: Questions, finds_prefixes: bool, quiet: bool
) -> _Found:
    """The plan that the store has, or a new one; for a store that does not exist yet, it is kept with its examples."""
    stored = read_plan(site.objects, keys)
    if stored is not None and (stored.objects or site.has_base()):
        return _Found(stored.plan, stored=True)
    with make_plan(config, questions, finds_prefixes=finds_prefixes, quiet=quiet) as made:
        if site.has_base():  # it may have been made of something else, which the teacher has its part in
            return _Found(made.plan, stored=False)
        for key in read_objects_of_plan(site.objects):  # of another plan, which never became a store
            site.objects.delete(key)
        languages = languages_of(config, made.plan)
        entries = write_planned(site.objects, made.shards, made.examples, made.validation, config.tasks, languages)
        write_plan(site.objects, keys, made.plan, entries)
        return _Found(made.plan, stored=True)


def _open_builder(
    site: BuildSite, keys: PlanKeys, config: Config, questions: Questions, found: _Found, engine: TeacherEngine
) -> StoreBuilder:
    """The store of a plan, which is created if there is none."""
    entries = {}
    if not site.has_base():
        stored = read_plan(site.objects, keys)
        if stored is None:
            raise StoreError(f"--store {site.objects.url}: another process has just planned it with different settings")
        entries = dict(stored.objects)
    spec = spec_of(config, questions, found.plan, engine)
    builder = site.builder(
        spec, found.plan.examples, entries, lambda: _vocabulary(found.plan, questions, engine, config)
    )
    if not found.stored:
        write_plan(site.objects, keys, found.plan, {})
    return builder


def _with_sampling(sequence: Sequenced, example: ExampleRecord, config: Config) -> Sequenced:
    """The sequence with what to draw for it: numbers of its own, whichever view, worker or run asks."""
    if config.teacher.signal == "topk":
        return sequence
    numbers = uniforms(config.seed, example.example_id, example.sequence.answer_length)
    return replace(sequence, sampling=Sampling(config.teacher.draws, config.teacher.signal == "hybrid", numbers))


def _vocabulary(plan: TeacherPlan, questions: Questions, engine: TeacherEngine, config: Config) -> Vocabulary:
    """The numbering of tokens that the teacher's answers to the first examples suggest, under the first view."""
    sequences, tokens = [], PILOT_TOKENS
    for source, part in zip(plan.sources.tolist(), plan.parts.tolist(), strict=True):
        if tokens <= 0:
            break
        record, sequence = questions.again(questions.views[0], source, part)
        sequences.append(Sequenced(sequence))
        tokens -= record.sequence.answer_length
    rows, _ = score(sequences, engine, config.teacher.top_k, config.teacher.batch_tokens, Tally())
    return Vocabulary.learn(rows.token_ids, len(questions.encoder.tokenizer))
