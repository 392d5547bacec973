"""The plan of a build: one pass over all that is asked, in memory that does not grow with the tokens.

What stays is a few numbers per example and shard. The tokens of the examples go through files into the store; those
of prompts are rendered again when their shard is scored.

Shape letters: N examples of the store, S shards of a view.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config
from logitbank.configs.schema import ConfigError
from logitbank.progress import Progress
from logitbank.sequences import AnsweredSequence
from logitbank.storage import Column, ExampleColumns, PlannedExamples, ShardPlan, lay_out, planned_of
from logitbank.tasks.encoding import TeacherSequence
from logitbank.teacher_cache.examples import Cell
from logitbank.teacher_cache.prefixes.prompts import PromptFile
from logitbank.teacher_cache.prefixes.sharing import shared_prefixes
from logitbank.teacher_cache.questions import CHAT, Asked, Questions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewPlan:
    """One view of the plan.

    Attributes:
        prompt_hash: SHA-256 over everything outside the answers, in store order.
        as_student: whether the teacher reads every example exactly as the student does.
        longest: tokens of the longest sequence.
        demonstrations: in all sequences together.
        dropped: `task/language` -> demonstrations that had to go for length.
        tokens: (S,) int64, what the teacher reads for each shard.
        checks: (S,) uint64, a hash of what it is asked in each.
        shared: (N,) int32, leading tokens that are worth sharing, see `shared_prefixes`; None if nobody uses them.
    """

    prompt_hash: str
    as_student: bool
    longest: int
    demonstrations: int
    dropped: Mapping[str, int]
    tokens: NDArray[np.int64]
    checks: NDArray[np.uint64]
    shared: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class TeacherPlan:
    """All that a build needs to know before a model is loaded.

    Attributes:
        examples: number, hash and layout of the examples.
        languages: of the examples, as they first come.
        sources: (N,) int64, ascending: which of the examples that are asked each was made of.
        parts: (N,) int32, which of that example's sequences it is.
        views: what is asked under each view.
        left_out: examples that do not fit, or that a chat template refuses, per (task, language).
        notes: what was left out or changed, in words.
    """

    examples: PlannedExamples
    languages: tuple[str, ...]
    sources: NDArray[np.int64]
    parts: NDArray[np.int32]
    views: Mapping[str, ViewPlan]
    left_out: Mapping[Cell, int]
    notes: Mapping[str, int]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, over all views."""
        return max(view.longest for view in self.views.values())


@dataclass(frozen=True)
class Planning:
    """A plan that was just made, with the columns of which a store's base is written.

    Attributes:
        plan: what was found.
        shards: which rows belong to which example.
        examples: of the store.
        validation: held out.
    """

    plan: TeacherPlan
    shards: ShardPlan
    examples: ExampleColumns
    validation: ExampleColumns


@contextlib.contextmanager
def make_plan(
    config: Config, questions: Questions, *, finds_prefixes: bool = False, quiet: bool = False
) -> Iterator[Planning]:
    """Encode everything once.

    Args:
        config: `store.shard_tokens` and `store.chunk_tokens`.
        questions: what is asked.
        finds_prefixes: whether to look for prompts that begin alike, for an engine that reuses that.
        quiet: show no progress.

    Raises:
        ConfigError: no example that fits the length limits.
        StoreError: no room in the temporary directory, or shards that are not whole chunks.
    """
    with contextlib.ExitStack() as open_files:

        def closing(columns: Any) -> Any:
            return open_files.enter_context(contextlib.closing(columns))

        examples: ExampleColumns = closing(ExampleColumns())
        validation: ExampleColumns = closing(ExampleColumns())
        sources, parts = closing(Column(np.int64)), closing(Column(np.int32))
        views = {view: closing(_ViewPass(finds_prefixes)) for view in questions.views}
        for asked in every_question(questions, quiet=quiet):
            examples.add(asked.record)
            sources.extend([asked.source])
            parts.extend([asked.part])
            for view, sequence in asked.views.items():
                views[view].add(asked, sequence, asked.dropped[view])
        for record in questions.held_out():
            validation.add(record)
        shards, chunk_tokens = lay_out(examples, config.store.shard_tokens, config.store.chunk_tokens)
        plan = TeacherPlan(
            examples=planned_of(shards, chunk_tokens, examples, validation),
            languages=tuple(examples.languages),
            sources=sources.read(),
            parts=parts.read(),
            views={view: it.finish(shards) for view, it in views.items()},
            left_out=dict(questions.left_out),
            notes=dict(questions.notes),
        )
        yield Planning(plan, shards, examples, validation)


def every_question(questions: Questions, *, quiet: bool = False) -> Iterator[Asked]:
    """All that is asked, in store order.

    Raises:
        ConfigError: no example fits the length limits.
    """
    questions.left_out.clear()
    questions.notes.clear()
    found = False
    with Progress("encoding", len(questions), "examples", quiet=quiet) as progress:
        for number in range(len(questions)):
            for asked in questions.asked(number):
                found = True
                yield asked
            progress.advance(1)
    if not found:
        raise _nothing_fits(questions)


def require_fitting(questions: Questions) -> None:
    """Raise `ConfigError` if no example fits the length limits, before anything is written."""
    if not any(questions.asked(number) for number in range(len(questions))):
        raise _nothing_fits(questions)


def _nothing_fits(questions: Questions) -> ConfigError:
    return ConfigError(f"data.max_student_tokens: none of {questions.misfits()}")


def report(left_out: Mapping[Cell, int], notes: Mapping[str, int]) -> None:
    """Say what was left out or changed."""
    questions = {cell: count for cell, count in left_out.items() if cell[0] != CHAT and count}
    if questions:
        cells = (f"{task}/{language} {count}" for (task, language), count in sorted(questions.items()))
        logger.info("query too long, skipped: %s", ", ".join(cells))
    for what, count in sorted(notes.items()):
        logger.info("%s: %s", what, f"{count:,}")


def check_of(student: AnsweredSequence, teacher: AnsweredSequence) -> int:
    """A hash of what a student learns of an example and a teacher reads of it, a number below 2⁶⁴."""
    digest = hashlib.blake2b(digest_size=8)
    for sequence in (student, teacher) if teacher is not student else (student,):
        digest.update(np.asarray([len(sequence), *np.ravel(sequence.spans)], "<i8").tobytes())
        digest.update(sequence.ids.astype("<i4").tobytes())
    return int.from_bytes(digest.digest(), "little")


def check_of_shard(checks: NDArray[np.uint64]) -> int:
    """The same of a whole shard, from what `check_of` gave for each of its examples."""
    digest = hashlib.blake2b(checks.astype("<u8").tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class _ViewPass:
    """What becomes a `ViewPlan`."""

    def __init__(self, finds_prefixes: bool) -> None:
        self._prompts = hashlib.sha256()
        self._tokens, self._checks = Column(np.int32), Column(np.uint64)
        self._file = PromptFile() if finds_prefixes else None
        self._as_student = True
        self._longest = self._demonstrations = 0
        self._dropped: Counter[Cell] = Counter()

    def add(self, asked: Asked, found: TeacherSequence, dropped: int) -> None:
        """Look at one example's sequence."""
        record, sequence = asked.record, found.sequence
        context = sequence.context_ids
        self._prompts.update(np.asarray([len(context)], "<i8").tobytes() + context.astype("<i4").tobytes())
        if len(sequence.spans) > 1:  # one answer follows its context
            self._prompts.update(np.asarray(sequence.spans, "<i8").tobytes())
        self._as_student &= sequence is record.sequence or sequence == record.sequence
        self._longest = max(self._longest, len(sequence))
        self._demonstrations += found.demonstrations
        self._dropped[(record.task, record.language)] += dropped
        self._tokens.extend([len(sequence) - 1])
        self._checks.extend([check_of(record.sequence, sequence)])
        if self._file is not None:
            self._file.add(sequence)

    def finish(self, shards: ShardPlan) -> ViewPlan:
        """All of it."""
        checks, first = self._checks.read(), shards.first_example
        units = shards.answer_start // shards.shard_tokens
        return ViewPlan(
            prompt_hash=self._prompts.hexdigest(),
            as_student=self._as_student,
            longest=self._longest,
            demonstrations=self._demonstrations,
            dropped={f"{task}/{language}": count for (task, language), count in sorted(self._dropped.items()) if count},
            tokens=np.add.reduceat(self._tokens.read(), first[:-1], dtype=np.int64),
            checks=np.array(
                [check_of_shard(checks[first[i] : first[i + 1]]) for i in range(shards.shards)], dtype=np.uint64
            ),
            shared=None if self._file is None else shared_prefixes(self._file, units),
        )

    def close(self) -> None:
        """Give the room back."""
        for column in (self._tokens, self._checks, self._file):
            if column is not None:
                column.close()
