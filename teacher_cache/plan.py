"""What a teacher will be asked: every training example, encoded under every view, in store order."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import data_settings
from logitbank.configs.schema import Config, ConfigError
from logitbank.experiment import VIEWS
from logitbank.progress import Progress
from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord
from logitbank.tasks import TASKS, Example
from logitbank.tasks.data import cells, demonstration_pool, load_examples, training_examples
from logitbank.tasks.demonstrations import draw_demonstrations, shuffle_answers
from logitbank.tasks.prompts import PromptEncoder

logger = logging.getLogger(__name__)

Cell = tuple[str, str]


@dataclass
class ViewPlan:
    """One view of the plan.

    Attributes:
        prompts: one int32 array per example.
        demonstrations: (N,) int32, demonstrations in each prompt.
        dropped: demonstrations that had to go for length, per (task, language).
        prompt_hash: SHA-256 over all prompts.
    """

    prompts: list[NDArray[np.int32]] = field(default_factory=list)
    demonstrations: list[int] = field(default_factory=list)
    dropped: Counter[Cell] = field(default_factory=Counter)

    @property
    def prompt_hash(self) -> str:
        """SHA-256 over all prompts, in store order."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(np.asarray([len(prompt)], "<i8").tobytes() + prompt.astype("<i4").tobytes())
        return digest.hexdigest()


@dataclass
class TeacherPlan:
    """All that a build needs to know before a model is loaded.

    Attributes:
        examples: training examples in store order.
        validation: held-out examples.
        views: prompts per view.
        too_long: examples left out because the query alone does not fit, per (task, language).
        absent: requested (task, language) cells that do not exist.
        teacher_template: hash of the teacher's chat template, where it is another than the student's.
        untaught: answer tokens that the teacher was not asked for, because it ends a turn with another: where one
            of them is the gold token, its row says nothing to a student.
        excluded: ids below the tokenizer's length that are another token for the teacher, or none: never ranked.
        teacher_tokenizer: hash of the teacher's tokenizer, for information, where it is another model.
    """

    examples: list[ExampleRecord]
    validation: list[ExampleRecord]
    views: dict[str, ViewPlan]
    too_long: Counter[Cell]
    absent: list[Cell]
    teacher_template: str | None = None
    untaught: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()
    teacher_tokenizer: str | None = None

    @property
    def answer_tokens(self) -> int:
        """Answer tokens of all training examples."""
        return sum(record.sequence.answer_length for record in self.examples)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer together, over all views."""
        return max(
            len(prompt) + record.sequence.answer_length
            for view in self.views.values()
            for prompt, record in zip(view.prompts, self.examples, strict=True)
        )


def make_plan(
    config: Config, encoder: PromptEncoder, views: Sequence[str], teacher: PromptEncoder | None = None
) -> TeacherPlan:
    """Load, draw, encode and order everything.

    Args:
        config: what to ask, and how long it may be.
        encoder: of the student: its prompts, and the ids of every answer.
        views: which to plan.
        teacher: encoder of the teacher, where its chat template is another than the student's; it has the same
            token ids and the same ids for an answer's text.

    Raises:
        ConfigError: an unknown view, or no example that fits the length limits.
        TaskError: a requested task or language that does not exist.
    """
    for view in views:
        if view not in VIEWS:
            raise ConfigError(f"--view: expected one of {', '.join(VIEWS)}, got {view!r}")
    present, absent = cells(config.tasks, config.languages)
    if absent:
        logger.info("no such data, left out: %s", ", ".join(f"{task}/{language}" for task, language in absent))
    plan = TeacherPlan([], [], {view: ViewPlan() for view in views}, Counter(), absent)
    if teacher is not None:
        plan.teacher_template = teacher.template_hash
        if teacher.end_of_turn_id != encoder.end_of_turn_id:
            plan.untaught = (encoder.end_of_turn_id,)
    examples = _spread([_train(config, task) for task in config.tasks], config.seed)
    pools: dict[Cell, list[Example]] = {}
    with Progress("encoding", len(examples), "examples") as progress:
        for example in examples:
            _add(plan, example, encoder, teacher, config, pools)
            progress.advance(1)
    if not plan.examples:
        raise ConfigError(
            f"data.max_student_tokens: none of {len(examples)} examples fits in "
            f"{_student_limit(config, examples[0].task)} tokens"
        )
    for example in _validation(config, present):
        if (record := _record(example, encoder, config, plan)) is not None:
            plan.validation.append(record)
    if plan.too_long:
        logger.info("query too long, left out: %s", _counts(plan.too_long))
    return plan


def _add(
    plan: TeacherPlan,
    example: Example,
    encoder: PromptEncoder,
    teacher: PromptEncoder | None,
    config: Config,
    pools: dict[Cell, list[Example]],
) -> None:
    """Plan one example under every view, or count it where it does not fit under one."""
    record = _record(example, encoder, config, plan)
    if record is None:
        return
    prompts = {view: _view_prompt(view, example, record, teacher, encoder, config, pools) for view in plan.views}
    if any(prompt is None for prompt in prompts.values()):
        plan.too_long[(example.task, example.language)] += 1
        return
    plan.examples.append(record)
    for view, prompt in prompts.items():
        assert prompt is not None
        ids, kept, wanted = prompt
        plan.views[view].prompts.append(ids)
        plan.views[view].demonstrations.append(kept)
        plan.views[view].dropped[(example.task, example.language)] += wanted - kept


def _train(config: Config, task: str) -> list[Example]:
    return training_examples(
        task,
        config.languages,
        data_settings(config),
        train_languages=config.data.train_languages,
        limit=config.data.max_train_per_task,
        limited_by="data.max_train_per_task",
    )


def _validation(config: Config, present: Sequence[Cell]) -> list[Example]:
    """Held-out examples: every requested language of a task has an equal share of the task's limit."""
    languages: dict[str, list[str]] = defaultdict(list)
    for task, language in present:
        languages[task].append(language)
    data = data_settings(config)
    examples: list[Example] = []
    for task, having in languages.items():
        share, rest = divmod(config.data.max_validation_per_task, len(having))
        for position, language in enumerate(having):
            limit = share + (position < rest)
            if limit:
                examples += load_examples(
                    task, "validation", language, data, limit=limit, limited_by="data.max_validation_per_task"
                )
    return examples


def _spread(groups: Sequence[Sequence[Example]], seed: int) -> list[Example]:
    """Shuffle each task and interleave the tasks evenly, so that any stretch of the store is a fair sample."""
    keyed = []
    for number, group in enumerate(groups):
        order = np.random.default_rng([seed, number]).permutation(len(group))
        keyed += [((rank + 0.5) / len(group), number, group[i]) for rank, i in enumerate(order)]
    return [example for _, _, example in sorted(keyed, key=lambda item: item[:2])]


def _record(example: Example, encoder: PromptEncoder, config: Config, plan: TeacherPlan) -> ExampleRecord | None:
    answer = encoder.encode_answer(example.answer)
    room = _student_limit(config, example.task) - len(answer)
    prompt = encoder.encode_prompt(TASKS[example.task], example, [], max_tokens=room)
    if prompt is None:
        plan.too_long[(example.task, example.language)] += 1
        return None
    sequence = AnsweredSequence.answering(prompt.ids, answer)
    return ExampleRecord(example.example_id, example.task, example.language, sequence)


def _view_prompt(
    view: str,
    example: Example,
    record: ExampleRecord,
    teacher: PromptEncoder | None,
    encoder: PromptEncoder,
    config: Config,
    pools: dict[Cell, list[Example]],
) -> tuple[NDArray[np.int32], int, int] | None:
    """The view's prompt, how many demonstrations it holds, how many were wanted; None if it cannot fit."""
    if view == "zeroshot" and teacher is None:
        return record.prompt_ids, 0, 0
    task = TASKS[example.task]
    encoder = teacher or encoder
    room = (config.data.max_teacher_tokens or task.max_teacher_tokens) - record.sequence.answer_length
    if view == "zeroshot":
        alone = encoder.encode_prompt(task, example, [], max_tokens=room)
        return None if alone is None else (np.asarray(alone.ids, dtype=np.int32), 0, 0)
    cell = (example.task, example.language)
    if cell not in pools:
        pools[cell] = demonstration_pool(*cell, data_settings(config), stage="train")
    wanted = config.fewshot.num_demonstrations.get(example.task, task.num_demonstrations)
    demonstrations = draw_demonstrations(
        pools[cell], example, wanted, seed=config.seed, selection=config.fewshot.selection
    )
    if view == "shuffled_answers":
        demonstrations = shuffle_answers(demonstrations, seed=config.seed, query=example)
    prompt = encoder.encode_prompt(task, example, demonstrations, max_tokens=room)
    if prompt is None:
        return None
    return np.asarray(prompt.ids, dtype=np.int32), prompt.demonstrations, wanted


def _student_limit(config: Config, task: str) -> int:
    return config.data.max_student_tokens or int(TASKS[task].max_student_tokens)


def _counts(counter: Counter[Cell]) -> str:
    return ", ".join(f"{task}/{language} {count}" for (task, language), count in sorted(counter.items()) if count)
