"""Writing a teacher store from anywhere: what a teacher said, one example at a time, becomes whole shards.

Shape letters: T answer tokens of an example, V rows of the `lm_head`, K ranks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.configs.schema import StoreConfig
from logitbank.errors import StoreError, counted
from logitbank.registry import ENCODINGS
from logitbank.storage import (
    BOUNDABLE,
    ExampleRecord,
    StoreBuilder,
    StoreSpec,
    TeacherRows,
    Vocabulary,
    concatenate,
    log_tail_of,
    open_builder,
    plan_shards,
)
from logitbank.storage.objects import BASE_KEY, open_writable
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.signal import signal

logger = logging.getLogger(__name__)

SAME_LOGIT = 5e-4  # nats between two roundings of one number
Values = torch.Tensor | NDArray[Any] | Sequence[Any]


class StoreWriter:
    """Writes one view of a store, as a context manager.

        with StoreWriter("runs/store", examples, tokenizer=tokenizer, view="mine", top_k=64, ...) as writer:
            for i in writer.missing():
                writer.write(i, my_teacher(examples[i].input_ids)[examples[i].answer_positions - 1])

    A shard is written once the last of its examples is there. Written shards are kept: run the same program again to
    resume, and `missing()` lists what is left. The result is a store like any other: `inspect-cache --verify` checks
    it, and `train-student --view mine` learns from it.
    """

    def __init__(
        self,
        url: str,
        examples: Sequence[ExampleRecord],
        *,
        tokenizer: Any,
        model: str,
        teacher: Mapping[str, Any],
        view: str,
        top_k: int,
        vocab_size: int,
        validation: Sequence[ExampleRecord] = (),
        bounded: Sequence[str] = (),
        encoding: str = StoreConfig().encoding,
        shard_tokens: int = StoreConfig().shard_tokens,
        identity: Mapping[str, Any] | None = None,
        view_identity: Mapping[str, Any] | None = None,
        worker: tuple[int, int] | None = None,
    ) -> None:
        """What to write; nothing is opened yet.

        Args:
            url: directory or fsspec URL of the store.
            examples: all that the view will have rows for, in store order; the same for all of a store's views.
            tokenizer: of transformers, that made their ids.
            model: hub id or path of the students' base model.
            teacher: what made the numbers: `model`, `revision`, `dtype` … The same values resume, others are refused.
            view: name of the view.
            top_k: K, ranks to keep.
            vocab_size: V, rows of the teacher's `lm_head`.
            validation: held-out examples, without teacher rows.
            bounded: which numbers `write_top_k` will not know exactly: of `logits` (known up to one constant for each
                token), `logsumexp`, `entropy`, `gold`. Losses and strategies that need them refuse the view.
            encoding: how rows are stored: `compact`, `float16` or `exact`.
            shard_tokens: answer tokens of a shard.
            identity: whatever else changes ids or numbers.
            view_identity: whatever else changes the numbers of this view alone.
            worker: (i, n) if n processes write the store, each every n-th shard.

        Raises:
            StoreError: no example, a repeated id, or a name in `bounded` that is none.
        """
        unknown = sorted(set(bounded) - set(BOUNDABLE))
        if unknown:
            raise StoreError(f"bounded: expected names among {', '.join(BOUNDABLE)}, got {unknown[0]}")
        encoder = PromptEncoder(tokenizer)
        self._spec = StoreSpec(
            model=model,
            tokenizer_size=len(tokenizer),
            vocab_size=vocab_size,
            tokenizer_hash=encoder.tokenizer_hash,
            tasks=tuple(dict.fromkeys(record.task for record in (*examples, *validation))),
            languages=tuple(dict.fromkeys(record.language for record in (*examples, *validation))),
            top_k=top_k,
            encoding=encoding,
            shard_tokens=shard_tokens,
            chunk_tokens=shard_tokens,
            teacher=dict(teacher),
            identity={"template": encoder.template_hash, **(identity or {})},
        )
        if not top_k <= min(len(tokenizer), vocab_size):
            raise StoreError(f"top_k: expected at most {min(len(tokenizer), vocab_size)} tokens, got {top_k}")
        self._url = url
        self._view = view
        self._bounded = tuple(name for name in BOUNDABLE if name in bounded)
        self._view_identity = {**({"bounded": list(self._bounded)} if bounded else {}), **(view_identity or {})}
        self._examples = examples
        self._validation = validation
        self._worker = worker
        self._plan, _ = plan_shards([len(record.answer_ids) for record in examples], shard_tokens, shard_tokens)
        self._shard_of = np.asarray(self._plan.answer_start) // self._plan.shard_tokens
        self._waiting: dict[int, dict[int, TeacherRows]] = {}
        self._builder: StoreBuilder | None = None
        self._done: set[int] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StoreWriter:
        """Open the store where it exists; a new one is made when its first shard is complete.

        Raises:
            StoreError: nothing can be written there, another process writes it, or it was started with different
                settings.
        """
        objects = open_writable(self._url)
        if objects.exists(BASE_KEY):
            try:
                self._open(None)
            except BaseException:
                self._stack.close()  # or this process would hold the store until it ends
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Let go of the store; examples of shards that are not complete are not kept."""
        self._stack.close()
        if kind is None and self._waiting:
            lost = sum(map(len, self._waiting.values()))
            logger.warning(
                "%s: %s not written because other examples of their shards are missing; run again to resume",
                self._url,
                counted(lost, "example"),
            )

    def missing(self) -> list[int]:
        """Positions of the examples whose rows are not written yet by this process, in order."""
        index, count = self._worker or (0, 1)
        return [
            position
            for position, shard in enumerate(self._shard_of.tolist())
            if shard not in self._done and shard % count == index and position not in self._waiting.get(shard, {})
        ]

    def write(self, example: int, logits: Values) -> None:
        """Keep the top K and the exact scalars of dense logits.

        Args:
            example: its position in `examples`.
            logits: (T, V) raw logits that predict its answer tokens, any float dtype, on any device.

        Raises:
            StoreError: a different shape, invalid numbers, or an example that was written already.
        """
        gold = self._gold(example)
        logits_TV = torch.as_tensor(logits)
        self._require_shape(example, "logits", logits_TV.shape, (len(gold), self._spec.vocab_size))
        gold_T = torch.from_numpy(gold.astype(np.int64)).to(logits_TV.device)
        with torch.no_grad():
            self._take(example, signal(logits_TV, gold_T, self._spec.top_k, self._spec.tokenizer_size))

    def write_top_k(
        self,
        example: int,
        token_ids: Values,
        logits: Values,
        *,
        logsumexp: Values | None = None,
        entropy: Values | None = None,
        gold_logit: Values | None = None,
        gold_rank: Values | None = None,
    ) -> None:
        """Store the top K that another program kept of a teacher's logits.

        Log-probabilities are logits whose `logsumexp` is 0: leave it out. What is in `bounded` is left out too: a
        lower bound of the entropy is stored, and for a gold token outside the K an upper bound of its logit.

        Args:
            example: its position in `examples`.
            token_ids: (T, K) distinct tokens, in any order.
            logits: (T, K) their logits, or log-probabilities in nats over all V tokens.
            logsumexp: (T,) over all V tokens, nats.
            entropy: (T,) of the full distribution, nats.
            gold_logit: (T,) needed only if the gold token may be outside the K; NaN if it is not known.
            gold_rank: (T,) likewise.

        Raises:
            StoreError: a different shape, a number that is missing and not bounded, or see `write`.
        """
        gold = self._gold(example)
        ids, values = np.asarray(token_ids, np.int32), np.asarray(logits, np.float32)
        shape = (len(gold), self._spec.top_k)
        self._require_shape(example, "token_ids", ids.shape, shape)
        self._require_shape(example, "logits", values.shape, shape)
        given = {"logsumexp": logsumexp, "entropy": entropy, "gold_logit": gold_logit, "gold_rank": gold_rank}
        scalars = {name: np.asarray(value, np.float32) for name, value in given.items() if value is not None}
        for name, found in scalars.items():
            self._require_shape(example, name, found.shape, (len(gold),))
        if (np.diff(np.sort(ids, axis=1)) == 0).any():
            name = self._examples[example].example_id
            raise StoreError(
                f"example {example} ({name}), token_ids: expected distinct tokens per row, got a repeated one"
            )
        order = np.argsort(-values, axis=1, kind="stable")
        ids, values = np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
        whole = scalars.get("logsumexp", np.zeros(len(gold), np.float32))
        if "entropy" not in scalars:
            self._require_bounded(example, "entropy", "entropy")
            scalars["entropy"] = _least_entropy(values, whole)
        is_gold = ids == gold[:, None]
        inside, rank = is_gold.any(axis=1), is_gold.argmax(axis=1)
        said = {"gold_logit", "gold_rank"} <= scalars.keys() and not np.isnan(scalars["gold_logit"][~inside]).any()
        if not inside.all() and not said:
            self._require_bounded(example, "gold", "gold_logit and gold_rank")
        most = np.minimum(values[:, -1], whole + log_tail_of(values, whole))  # outside the K
        known = scalars.get("gold_logit", np.full(len(gold), np.nan, np.float32))
        beyond = scalars.get("gold_rank", np.full(len(gold), self._spec.top_k))
        rows = TeacherRows(
            token_ids=ids,
            logits=values,
            logsumexp=whole,
            entropy=scalars["entropy"],
            gold_logit=self._gold_logit(np.where(inside, values[np.arange(len(gold)), rank], np.nan), known, most),
            gold_rank=np.where(inside, rank, beyond).astype(np.int32),
        )
        self._take(example, rows)

    def _gold(self, example: int) -> NDArray[np.int32]:
        """The answer tokens of an example that may be written now."""
        if not 0 <= example < len(self._examples):
            raise StoreError(f"example: expected 0 to {len(self._examples) - 1}, got {example}")
        shard = int(self._shard_of[example])
        if shard in self._done or example in self._waiting.get(shard, {}):
            name = self._examples[example].example_id
            raise StoreError(f"example {example} ({name}): already has its rows; write only those that missing() lists")
        return self._examples[example].answer_ids

    def _gold_logit(
        self, ranked: NDArray[np.float32], known: NDArray[np.float32], most: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(T,) what is known of each gold token, as finely as the encoding keeps it beside the value of its rank."""
        slack = ENCODINGS[self._spec.encoding].slack.logits + SAME_LOGIT
        finer = np.isnan(ranked) | (np.abs(known - ranked) <= slack)
        found = np.where(finer & ~np.isnan(known), known, ranked)
        return np.where(np.isnan(found), most, found)

    def _require_shape(self, example: int, what: str, got: Sequence[int], expected: tuple[int, ...]) -> None:
        if tuple(got) != expected:
            name = self._examples[example].example_id
            meant = ", a row for each answer token" if got and got[0] != expected[0] else ""
            raise StoreError(f"example {example} ({name}), {what}: expected {expected}{meant}, got {tuple(got)}")

    def _require_bounded(self, example: int, name: str, what: str) -> None:
        if name not in self._bounded:
            raise StoreError(
                f"example {example} ({self._examples[example].example_id}), {what}: expected (T,) numbers, got none; "
                f"pass them, or set bounded=[{name!r}]"
            )

    def _take(self, example: int, rows: TeacherRows) -> None:
        """Keep rows until their shard is whole, then write it."""
        rows.check(self._spec.tokenizer_size, self._spec.vocab_size)
        shard = int(self._shard_of[example])
        waiting = self._waiting.setdefault(shard, {})
        waiting[example] = rows
        members = self._plan.examples_of(shard)
        if len(waiting) < len(members):
            return
        whole = concatenate([waiting[member] for member in members])
        builder = self._builder or self._open(whole.token_ids)
        builder.write_shard(self._view, shard, whole)
        del self._waiting[shard]
        self._done.add(shard)

    def _open(self, pilot: NDArray[np.int32] | None) -> StoreBuilder:
        """Open the builder; `pilot`, (P, K) top tokens, teaches a new store its numbering."""

        def learn() -> Vocabulary:
            ids = pilot if pilot is not None else np.arange(self._spec.tokenizer_size, dtype=np.int32)[:, None]
            return Vocabulary.learn(ids, self._spec.tokenizer_size)

        index, count = self._worker or (None, None)
        opened = open_builder(
            self._url, self._spec, self._examples, self._validation, vocabulary=learn, worker=index, workers=count
        )
        self._builder = self._stack.enter_context(opened)
        self._builder.add_view(self._view, self._view_identity, {})
        self._done = set(range(self._plan.shards)) - set(self._builder.missing_shards(self._view))
        return self._builder


def _least_entropy(logits_TK: NDArray[np.float32], logsumexp_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """The entropy where all that is outside the K were one token, (T,) nats: no distribution with these has less."""
    log_p = logits_TK.astype(np.float64) - logsumexp_T[:, None]
    rest = log_tail_of(logits_TK, logsumexp_T).astype(np.float64)
    inside = np.where(np.isfinite(log_p), np.exp(log_p) * log_p, 0.0).sum(axis=1)
    least: NDArray[np.float32] = np.maximum(-inside - np.exp(rest) * rest, 0.0).astype(np.float32)
    return least
