"""What a teacher will be asked: every training example, encoded under every view, in store order."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from logitbank.configs import data_settings
from logitbank.configs.schema import Config, ConfigError
from logitbank.experiment import CONVERSATION_VIEWS, QUESTION_VIEWS, VIEWS
from logitbank.progress import Progress
from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord
from logitbank.tasks import TASKS, Example
from logitbank.tasks.data import cells, demonstration_pool, get_task
from logitbank.tasks.demonstrations import draw_demonstrations, shuffle_answers
from logitbank.tasks.encoding import ExampleEncoder, StudentSequence, TeacherSequence
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.examples import TRAIN, Cell, held_out_examples, store_examples

logger = logging.getLogger(__name__)

CHAT = "chat"


class Contexts(NamedTuple):
    """Most tokens that student and teacher read at once; None for a model without such a limit."""

    student: int | None = None
    teacher: int | None = None


@dataclass
class ViewPlan:
    """One view of the plan.

    Attributes:
        sequences: what the teacher reads for each example, the spans of the student's sequence in it.
        demonstrations: how many each sequence holds.
        dropped: demonstrations that had to go for length, per (task, language).
    """

    sequences: list[AnsweredSequence] = field(default_factory=list)
    demonstrations: list[int] = field(default_factory=list)
    dropped: Counter[Cell] = field(default_factory=Counter)

    @property
    def prompt_hash(self) -> str:
        """SHA-256 over all that stands outside the answers, in store order."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            context = sequence.context_ids
            digest.update(np.asarray([len(context)], "<i8").tobytes() + context.astype("<i4").tobytes())
            if len(sequence.spans) > 1:  # one answer stands behind its context
                digest.update(np.asarray(sequence.spans, "<i8").tobytes())
        return digest.hexdigest()


@dataclass
class TeacherPlan:
    """All that a build needs to know before a model is loaded.

    Attributes:
        examples: those that a teacher is asked for, in store order.
        validation: held-out examples of a training set; empty for any other split.
        views: what is asked under each view.
        left_out: examples that do not fit, or that a chat template refuses, per (task, language).
        absent: requested (task, language) cells that do not exist.
        teacher_template: hash of the teacher's chat template, where it is another than the student's.
        untaught: answer tokens that the teacher was not asked for, because it ends a turn with another: where one
            of them is the gold token, its row says nothing to a student.
        excluded: ids below the tokenizer's length that are another token for the teacher, or none: never ranked.
        split: whose examples they are.
        teacher_tokenizer: hash of the teacher's tokenizer, for information, where it is another model.
    """

    examples: list[ExampleRecord]
    validation: list[ExampleRecord]
    views: dict[str, ViewPlan]
    left_out: Counter[Cell]
    absent: list[Cell]
    teacher_template: str | None = None
    untaught: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()
    split: str = TRAIN
    teacher_tokenizer: str | None = None

    @property
    def answer_tokens(self) -> int:
        """Answer tokens of all examples, counted once."""
        return sum(record.sequence.answer_length for record in self.examples)

    def reads_as_student(self, view: str) -> bool:
        """Whether the teacher reads every example exactly as the student does."""
        pairs = zip(self.views[view].sequences, self.examples, strict=True)
        return all(sequence is record.sequence or sequence == record.sequence for sequence, record in pairs)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, over all views."""
        return max(len(sequence) for view in self.views.values() for sequence in view.sequences)


def make_plan(
    config: Config,
    encoder: PromptEncoder,
    views: Sequence[str],
    teacher: PromptEncoder | None = None,
    *,
    split: str = TRAIN,
    contexts: Contexts = Contexts(),  # noqa: B008  # immutable
) -> TeacherPlan:
    """Load, draw, encode and order everything.

    Args:
        config: what to ask, and how long it may be.
        encoder: of the student: its prompts, and the ids of every answer.
        views: which to plan.
        teacher: encoder of the teacher, where its chat template is another than the student's; it has the same
            ids for an answer's text.
        split: whose examples: `train`, or `validation` or `test` for evaluation.
        contexts: of student and teacher: no sequence is longer, whatever the configuration allows.

    Raises:
        ConfigError: an unknown view, one that a task does not have, or no example that fits the length limits.
        TaskError: a requested task or language that does not exist, or data that cannot be opened.
    """
    _check_views(config, views)
    present, absent = cells(config.tasks, config.languages)
    if absent:
        logger.info("no such data, left out: %s", ", ".join(f"{task}/{language}" for task, language in absent))
    plan = TeacherPlan([], [], {view: ViewPlan() for view in views}, Counter(), absent, split=split)
    if teacher is not None:
        plan.teacher_template = teacher.template_hash
        if teacher.end_of_turn_id != encoder.end_of_turn_id:
            plan.untaught = (encoder.end_of_turn_id,)
    planner = _Planner(config, plan, ExampleEncoder(encoder, teacher, data_settings(config).chat), contexts)
    examples = store_examples(config, split, present)
    with Progress("encoding", len(examples), "examples") as progress:
        for example in examples:
            planner.add(example)
            progress.advance(1)
    if not plan.examples:
        raise ConfigError(
            f"data.max_student_tokens: none of {len(examples)} examples fits in "
            f"{planner.student_limit(examples[0].task)} tokens"
        )
    for example in held_out_examples(config, present) if split == TRAIN else ():
        plan.validation += [record for record, _ in planner.records(example)]
    planner.report()
    return plan


def _check_views(config: Config, views: Sequence[str]) -> None:
    for view in views:
        if view not in VIEWS:
            raise ConfigError(f"--view: expected one of {', '.join(VIEWS)}, got {view!r}")
        for task in config.tasks:
            having = CONVERSATION_VIEWS if get_task(task).name == CHAT else QUESTION_VIEWS
            if view not in having:
                raise ConfigError(f"--view: expected one of {', '.join(having)} for {task}, got {view!r}")


class _Planner:
    """Encodes examples into a plan."""

    def __init__(self, config: Config, plan: TeacherPlan, encoding: ExampleEncoder, contexts: Contexts) -> None:
        self._config, self._plan, self._encoding, self._contexts = config, plan, encoding, contexts
        self._pools: dict[Cell, list[Example]] = {}

    def add(self, example: Example) -> None:
        """Plan one example under every view; count what does not fit under one."""
        demonstrations = {view: self._demonstrations(view, example) for view in self._plan.views}
        for record, student in self.records(example):
            asked = {view: self._ask(view, example, student, demonstrations[view]) for view in self._plan.views}
            if any(sequence is None for sequence in asked.values()):
                self._plan.left_out[(example.task, example.language)] += 1
                if example.task == CHAT:
                    self._encoding.counts["sequences left out, too long for the teacher"] += 1
                continue
            self._plan.examples.append(record)
            for view, found in asked.items():
                assert found is not None
                view_plan = self._plan.views[view]
                view_plan.sequences.append(found.sequence)
                view_plan.demonstrations.append(found.demonstrations)
                dropped = len(demonstrations[view]) - found.demonstrations
                view_plan.dropped[(example.task, example.language)] += dropped

    def records(self, example: Example) -> list[tuple[ExampleRecord, StudentSequence]]:
        """What students learn from an example; nothing, counted, where not even the query fits."""
        limit = self.student_limit(example.task)
        students = self._encoding.student(TASKS[example.task], example, max_tokens=limit)
        if not students:
            self._plan.left_out[(example.task, example.language)] += 1
        return [
            (ExampleRecord(example.example_id + it.suffix, example.task, example.language, it.sequence), it)
            for it in students
        ]

    def student_limit(self, task: str) -> int:
        """Most tokens of a student's sequence."""
        limit = self._config.data.max_student_tokens or int(TASKS[task].max_student_tokens)
        return min(limit, self._contexts.student or limit)

    def teacher_limit(self, task: str) -> int:
        """Most tokens of a teacher's sequence."""
        limit = self._config.data.max_teacher_tokens or int(TASKS[task].max_teacher_tokens)
        return min(limit, self._contexts.teacher or limit)

    def report(self) -> None:
        """Say once what was left out or changed."""
        data, contexts = self._config.data, self._contexts
        for name, asked, most in (
            ("student", data.max_student_tokens, contexts.student),
            ("teacher", data.max_teacher_tokens, contexts.teacher),
        ):
            if asked is not None and most is not None and asked > most:
                logger.info("data.max_%s_tokens: %s, all that the model reads; got %s", name, f"{most:,}", f"{asked:,}")
        questions = Counter({cell: count for cell, count in self._plan.left_out.items() if cell[0] != CHAT})
        if questions:
            logger.info("query too long, left out: %s", _counts(questions))
        for what, count in sorted(self._encoding.counts.items()):
            logger.info("%s: %s", what, f"{count:,}")

    def _ask(
        self, view: str, example: Example, student: StudentSequence, demonstrations: Sequence[Example]
    ) -> TeacherSequence | None:
        task = TASKS[example.task]
        limit = self.teacher_limit(example.task)
        found = self._encoding.teacher(view, task, example, student, demonstrations, max_tokens=limit)
        if found is None:
            return None
        self._check_alignment(view, example, student.sequence, found.sequence)
        return found._replace(sequence=self._with_known_end(found.sequence))

    def _with_known_end(self, sequence: AnsweredSequence) -> AnsweredSequence:
        """The sequence with the teacher's own end of turn where it has no token for the student's: no logits either."""
        teacher, ids = self._encoding.teacher_encoder, sequence.ids
        if teacher is None or ids[-1] not in self._plan.untaught or _knows(teacher, int(ids[-1])):
            return sequence
        return AnsweredSequence(np.append(ids[:-1], teacher.end_of_turn_id), sequence.spans)

    def _check_alignment(
        self, view: str, example: Example, student: AnsweredSequence, teacher: AnsweredSequence
    ) -> None:
        """Every span of the student's is there, its ids the same; ends of turn aside that carry no teacher term."""
        lengths = [[span.length for span in sequence.spans] for sequence in (student, teacher)]
        same = lengths[0] == lengths[1] and (
            (student.answer_ids == teacher.answer_ids) | np.isin(student.answer_ids, self._plan.untaught)
        )
        if not np.all(same):
            raise RuntimeError(f"{example.example_id}: view {view} has other answers than the student; report this")

    def _demonstrations(self, view: str, example: Example) -> list[Example]:
        if view not in ("fewshot", "shuffled_answers"):
            return []
        cell = (example.task, example.language)
        if cell not in self._pools:
            self._pools[cell] = demonstration_pool(*cell, data_settings(self._config), stage="train")
        wanted = self._config.fewshot.num_demonstrations.get(example.task, TASKS[example.task].num_demonstrations)
        drawn = draw_demonstrations(
            self._pools[cell], example, wanted, seed=self._config.seed, selection=self._config.fewshot.selection
        )
        return shuffle_answers(drawn, seed=self._config.seed, query=example) if view == "shuffled_answers" else drawn


def _knows(encoder: PromptEncoder, token: int) -> bool:
    return encoder.tokenizer.convert_ids_to_tokens(token) is not None


def _counts(counter: Counter[Cell]) -> str:
    return ", ".join(f"{task}/{language} {count}" for (task, language), count in sorted(counter.items()) if count)
