"""Small synthetic stores for tests: a teacher stand-in that needs no torch."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord, StoreBuilder, StoreSpec, TeacherRows, Vocabulary, open_builder

VOCAB_SIZE = 520
TOKENIZER_SIZE = 500


def records(count: int, *, seed: int = 0, longest: int = 9, prefix: str = "train") -> list[ExampleRecord]:
    """Examples of two tasks and two languages with random ids."""
    rng = np.random.default_rng(seed)
    return [
        ExampleRecord(
            example_id=f"{('nli', 'pos')[i % 2]}/{('en', 'hi')[i % 3 % 2]}/{prefix}/{i}",
            task=("nli", "pos")[i % 2],
            language=("en", "hi")[i % 3 % 2],
            sequence=AnsweredSequence.answering(
                rng.integers(0, TOKENIZER_SIZE, rng.integers(1, 30)),
                rng.integers(0, TOKENIZER_SIZE, rng.integers(1, longest + 1)),
            ),
        )
        for i in range(count)
    ]


def spec(**changes: Any) -> StoreSpec:
    """A specification that `build` accepts; `changes` replace single fields."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "tokenizer_size": TOKENIZER_SIZE,
        "vocab_size": VOCAB_SIZE,
        "tokenizer_hash": "t" * 64,
        "tasks": ("nli", "pos"),
        "languages": ("en", "hi"),
        "top_k": 96,
        "encoding": "compact",
        "shard_tokens": 64,
        "chunk_tokens": 16,
        "teacher": {"model": "tiny", "dtype": "float32"},
        "identity": {"seed": 1},
    }
    return StoreSpec(**{**fields, **changes})


def conversations(count: int, *, seed: int = 0, turns: int = 4, size: int = TOKENIZER_SIZE) -> list[AnsweredSequence]:
    """Sequences with 1 to `turns` answer spans and random ids below `size`."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(count):
        runs = rng.integers(1, 6, (rng.integers(1, turns + 1), 2))
        ends = np.cumsum(runs.ravel()).reshape(-1, 2)
        sequences.append(AnsweredSequence(rng.integers(0, size, ends[-1, 1]), zip(ends[:, 0], runs[:, 1], strict=True)))
    return sequences


def teacher_rows(
    answer_ids: np.ndarray,
    top_k: int,
    *,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    tokenizer_size: int = TOKENIZER_SIZE,
) -> TeacherRows:
    """Rows of a random but reproducible teacher over `vocab_size` rows, in float64 arithmetic."""
    rng = np.random.default_rng([seed, len(answer_ids), *answer_ids.tolist()])
    logits = rng.normal(0, 3, (len(answer_ids), vocab_size)).astype(np.float32)
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp(wide - peak).sum(axis=1)) + peak[:, 0]
    probabilities = np.exp(wide - logsumexp[:, None])
    entropy = -(probabilities * (wide - logsumexp[:, None])).sum(axis=1)
    gold = np.take_along_axis(logits, answer_ids[:, None], axis=1)
    order = np.argsort(-logits[:, :tokenizer_size], axis=1, kind="stable")[:, :top_k]
    return TeacherRows(
        token_ids=order.astype(np.int32),
        logits=np.take_along_axis(logits, order, axis=1),
        logsumexp=logsumexp.astype(np.float32),
        entropy=entropy.astype(np.float32),
        gold_logit=gold[:, 0],
        gold_rank=(logits[:, :tokenizer_size] > gold).sum(axis=1).astype(np.int32),
    )


@functools.cache
def vocabulary(tokenizer_size: int = TOKENIZER_SIZE) -> Vocabulary:
    """What the builder learns from a pilot that often ranks one of 40 tokens first."""
    rng = np.random.default_rng(3)
    pilot = np.stack([rng.permutation(tokenizer_size)[:70] for _ in range(200)])
    pilot[:, 0] = rng.integers(0, 40, len(pilot))
    return Vocabulary.learn(pilot.astype(np.int32), tokenizer_size)


def write_missing(
    builder: StoreBuilder,
    view: str,
    examples: Sequence[ExampleRecord] | Sequence[AnsweredSequence],
    top_k: int,
    **teacher: int,
) -> None:
    """Let the stand-in teacher fill every missing shard of a view."""
    for shard in builder.missing_shards(view):
        answer_ids = np.concatenate([examples[i].answer_ids for i in builder.plan_of(view).examples_of(shard)])
        builder.write_shard(view, shard, teacher_rows(answer_ids, top_k, seed=len(view), **teacher))


def build(
    url: str,
    examples: list[ExampleRecord],
    *,
    views: tuple[str, ...] = ("fewshot", "zeroshot"),
    validation: list[ExampleRecord] | None = None,
    **changes: Any,
) -> None:
    """Build a whole store with the stand-in teacher."""
    chosen = spec(**changes)
    with open_builder(url, chosen, examples, validation or [], vocabulary=vocabulary) as builder:
        for view in views:
            builder.add_view(view, {"demonstrations": len(view)}, {})
            write_missing(builder, view, examples, chosen.top_k)


@contextlib.contextmanager
def held_elsewhere(builder: Callable[[], AbstractContextManager[StoreBuilder]]) -> Iterator[Any]:
    """Another process that holds the right to write which a builder takes, until the context ends or it is killed."""

    def hold() -> None:
        with builder():
            sender.send(True)
            time.sleep(60)

    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=hold, daemon=True)
    process.start()
    try:
        assert receiver.poll(30)
        yield process
    finally:
        process.kill()
        process.join()
