"""Checking a whole store: every byte against the manifests, every number against what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from logitbank.errors import StoreError, counted
from logitbank.storage.groups import check_manifests
from logitbank.storage.teacher_store.encodings import Slack
from logitbank.storage.teacher_store.examples import ExampleTable
from logitbank.storage.teacher_store.layout import ShardPlan
from logitbank.storage.teacher_store.reader import TeacherStore
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.samples import sample_problems
from logitbank.storage.teacher_store.views import Tokens


def verify(url: str, advance: Callable[[str], object] = lambda what: None) -> list[str]:
    """Every problem found in a store, a line each; none for a sound one.

    Args:
        url: the store.
        advance: called with the name of each part as it is done.

    Raises:
        StoreError: there is no store at all.
    """
    problems = check_manifests(url, advance)
    if problems:
        return problems
    store = TeacherStore.open(url)
    problems += _check_table("examples", store.examples, store.plan, store.info.tokens, store)
    problems += _check_table("validation", store.validation, None, store.info.tokens, store)
    for view in store.views:
        plan = store.plan_of(view)
        if store.has_own_sequences(view):
            problems += _check_table(f"view {view}", store.table(view), plan, store.tokens_of(view), store)
        missing = set(store.missing_shards(view))
        for shard in range(plan.shards):
            if shard not in missing:
                problems += _check_shard(store, view, shard)
                advance(f"{view} {shard}")
        if missing:
            some = ", ".join(map(str, sorted(missing)[:8]))
            shards = counted(plan.shards, "shard")
            problems.append(f"view {view}: {len(missing)} of {shards} not written yet ({some})")
    return problems


def _check_table(
    name: str, table: ExampleTable, plan: ShardPlan | None, tokens: Tokens, store: TeacherStore
) -> Iterator[str]:
    """What is wrong with examples, and with how their answers are laid out if they have teacher rows (`plan`)."""
    ends = table.answer_start + table.answer_length
    if (table.answer_start[1:] < ends[:-1]).any() or (table.answer_length < 1).any():
        yield f"{name}: answers overlap or are empty"
    if (table.task >= len(store.info.tasks)).any() or (table.language >= len(store.info.languages)).any():
        yield f"{name}: a task or language that the store does not name"
    for example in range(len(table)):
        try:
            ids = table.sequence(example).ids
        except ValueError as error:
            yield f"{name} {table.example_id[example]}: {error}"
            continue
        if ids.min() < 0 or ids.max() >= tokens.vocab_size:
            yield f"{name} {table.example_id[example]}: a token id outside 0 to {tokens.vocab_size - 1}"
    if plan is not None and (table.answer_start // plan.shard_tokens != (ends - 1) // plan.shard_tokens).any():
        yield f"{name}: an answer straddles two shards"


def _check_shard(store: TeacherStore, view: str, shard: int) -> Iterator[str]:
    examples, tokens = store.plan_of(view).examples_of(shard), store.tokens_of(view)
    where = f"view {view}, shard {shard}, examples {examples.start} to {examples.stop - 1}"
    try:
        rows = store.read_shard(view, shard)
    except StoreError as error:
        yield f"{where}: {error}"
        return
    answer_ids = np.concatenate([store.table(view).answer_ids(example) for example in examples])
    if len(rows) != len(answer_ids):
        yield f"{where}: expected {len(answer_ids)} rows, got {len(rows)}"
        return
    try:
        rows.check(tokens.tokenizer_size, tokens.vocab_size)
    except StoreError as error:
        yield f"{where}: {error}"
    slack = store.encoding.slack.log_mass
    for problem in sample_problems(rows, store.info.signal, store.info.draws, tokens.tokenizer_size, slack=slack):
        yield f"{where}: {problem}"
    for problem in _meaning(rows, answer_ids, tokens.vocab_size, store.encoding.slack):
        yield f"{where}: {problem}"


def _meaning(rows: TeacherRows, answer_ids: np.ndarray, vocab_size: int, allowed: Slack) -> Iterator[str]:
    slack = 1e-3 + allowed.relative * float(np.abs(rows.logits[:, 0]).max()) + allowed.scalars
    if (rows.logsumexp < rows.logits[:, 0] - slack).any():
        yield "logsumexp: below the largest logit"
    if (rows.entropy < -slack).any() or (rows.entropy > math.log(vocab_size) + slack).any():
        yield f"entropy: outside 0 to log {vocab_size}"
    if (rows.gold_logit > rows.logits[:, 0] + slack).any():
        yield "gold_logit: above the largest logit"
    # Where the gold token is among the stored ranks, its value must be that of its rank.
    value_slack = slack + allowed.logits
    stored = np.flatnonzero(rows.gold_rank < rows.logits.shape[1])
    at_rank = rows.logits[stored, rows.gold_rank[stored]]
    if (np.abs(at_rank - rows.gold_logit[stored]) > value_slack).any():
        yield "gold_rank: the logit of that rank is not the gold logit"
    mass = np.exp(rows.logits - rows.logsumexp[:, None].astype(np.float64)).sum(axis=1)
    tail = np.exp(rows.log_tail.astype(np.float64))
    tolerance = mass * np.expm1(value_slack) + tail * np.expm1(allowed.tails) + 1e-5
    if (np.abs(mass + tail - 1) > tolerance).any():
        yield "log_tail: it and the stored ranks do not add up to probability 1"
    if allowed.lossless:
        ids = np.sort(rows.token_ids, axis=1)
        if (ids[:, 1:] == ids[:, :-1]).any():
            yield "token_ids: a token twice in one row"
        outside = np.flatnonzero(rows.gold_rank >= rows.logits.shape[1])
        if (rows.token_ids[outside] == answer_ids[outside, None]).any():
            yield "gold_rank: says the gold token is not among the stored ranks, but it is"
