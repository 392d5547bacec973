"""A plan and a teacher without data sets and models, for tests of what a build does around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from logitbank.configs import Config, load_config
from logitbank.models.workers import Worker
from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord, TeacherRows, concatenate
from logitbank.tasks.encoding import TeacherSequence
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.fill import fill_share
from logitbank.teacher_cache.scoring import Tally
from logitbank.teacher_cache.session import Session, begin
from tests.plans import ListedQuestions

TOKENS, ROWS, TOP_K, PREFIX = 60, 64, 20, 160
ENCODER: Any = SimpleNamespace(tokenizer=range(TOKENS), tokenizer_hash="t" * 64, template_hash="c" * 64)


def configuration(**changes: Any) -> Config:
    settings = {"teacher.top_k": TOP_K, "teacher.batch_tokens": 400, "store.shard_tokens": 64, "store.chunk_tokens": 16}
    return load_config(
        [],
        ["model.name=fake", "tasks=[nli,pos]", "languages=[en]"]
        + [f"{key}={value}" for key, value in {**settings, **changes}.items()],
    )


def small_questions(examples: int = 100) -> ListedQuestions:
    """Two tasks, answers of 1 to 9 tokens, few-shot prompts that begin alike per task."""
    rng = np.random.default_rng(5)
    prefixes = rng.integers(0, TOKENS, (2, PREFIX))
    records, fewshot, zeroshot = [], [], []
    for i in range(examples):
        query = rng.integers(0, TOKENS, rng.integers(1, 30))
        answer = rng.integers(0, TOKENS, rng.integers(1, 10))
        task = ("nli", "pos")[i % 2]
        records.append(ExampleRecord(f"{task}/en/train/{i}", task, "en", AnsweredSequence.answering(query, answer)))
        zeroshot.append(TeacherSequence(records[-1].sequence, 0))
        behind = AnsweredSequence.answering(np.concatenate([prefixes[i % 2], query]), answer)
        fewshot.append(TeacherSequence(behind, 5))
    return ListedQuestions(ENCODER, records, {"fewshot": fewshot, "zeroshot": zeroshot})


class FakeTeacher:
    """Random but reproducible rows per sequence; `before` sees each batch first and may stop it.

    A batch whose own tokens, padding included, exceed `memory` runs out of it.
    """

    vocab_size = ROWS
    batches_itself = False

    def __init__(
        self,
        before: Callable[[Sequence[Sequenced]], object] = lambda batch: None,
        *,
        memory: int = 1 << 30,
        reuses_prefixes: bool = True,
    ) -> None:
        self._before = before
        self._memory = memory
        self.reuses_prefixes = reuses_prefixes

    def identity(self) -> Mapping[str, Any]:
        return {"model": "fake", "prefix_reuse": self.reuses_prefixes}

    def score_batches(self, batches: Iterable[Sequence[Sequenced]], top_k: int) -> Iterator[TeacherRows]:
        return (self.score(batch, top_k) for batch in batches)

    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        assert len({item.prefix for item in batch}) == 1
        self._before(batch)
        if len(batch) * max(item.own for item in batch) > self._memory:
            raise torch.OutOfMemoryError("out of memory")
        return concatenate([self._rows(item, top_k) for item in batch])

    def _rows(self, item: Sequenced, top_k: int) -> TeacherRows:
        answer_ids = item.sequence.answer_ids
        rng = np.random.default_rng(item.sequence.ids.tolist())
        logits = rng.normal(0, 3, (len(answer_ids), ROWS)).astype(np.float32)
        order = np.argsort(-logits[:, :TOKENS], axis=1)[:, :top_k]
        gold = np.take_along_axis(logits, answer_ids[:, None].astype(np.int64), axis=1)
        logsumexp = np.log(np.exp(logits).sum(axis=1))
        entropy = logsumexp - (np.exp(logits - logsumexp[:, None]) * logits).sum(axis=1)
        return TeacherRows(
            token_ids=order.astype(np.int32),
            logits=np.take_along_axis(logits, order, axis=1),
            logsumexp=logsumexp,
            entropy=entropy,
            gold_logit=gold[:, 0],
            gold_rank=(logits[:, :TOKENS] > gold).sum(axis=1).astype(np.int32),
        )


def session(
    path: Path, engine: FakeTeacher, *, config: Config | None = None, worker: Worker | None = None
) -> AbstractContextManager[Session]:
    """The small questions, open to be filled."""
    return begin(
        str(path),
        config or configuration(),
        small_questions(),
        lambda longest: engine,
        finds_prefixes=engine.reuses_prefixes,
        worker=worker,
    )


def fill(
    path: Path,
    engine: FakeTeacher,
    *,
    config: Config | None = None,
    worker: int | None = None,
    workers: int | None = None,
) -> Tally:
    share = None if worker is None or workers is None else Worker(worker, workers, "test")
    with session(path, engine, config=config, worker=share) as opened:
        return fill_share(opened, share)


def contents(path: Path) -> dict[str, bytes]:
    """Every object of a store; locks are no part of it."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and not file.name.startswith(".lock")
    }
