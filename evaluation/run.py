"""Evaluate models on a grid of tasks and languages, cell by cell, each finished cell kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from logitbank.configs import Config, ConfigError
from logitbank.errors import StoreError
from logitbank.evaluation.checkpoints import Checkpoint, check_template
from logitbank.evaluation.engines.base import Engine, EngineOpener, open_engine
from logitbank.evaluation.finished import Place, cell_name, latest_generation, write_run
from logitbank.evaluation.identity import Identity, examine, identify, open_tokenizer
from logitbank.evaluation.predictions import cell_line, encode_questions, metric_rows, predict
from logitbank.evaluation.questions import (
    Contents,
    Question,
    answer_limit,
    asked_and_gold,
    check_demonstrations,
    contents_of,
    draw_questions,
    is_forced,
)
from logitbank.evaluation.reference import Reference
from logitbank.evaluation.teacher_forced import encode_forced, forced_protocol, predict_forced, teacher_of
from logitbank.models.workers import Worker
from logitbank.preference import TASK as PREFERENCE
from logitbank.progress import Progress
from logitbank.storage.results import read_rows, write_rows
from logitbank.tasks import TASKS
from logitbank.tasks.data import cells
from logitbank.tasks.prompts import PromptEncoder


class Bar(Protocol):
    """What counts answers and says lines: a `Progress`, or what an actor has in its place."""

    def advance(self, count: float) -> None:
        """Count more answers."""

    def say(self, text: str) -> None:
        """Print a line."""


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate and where its rows go.

    Attributes:
        config: the whole configuration.
        condition: name under which the rows appear; `fewshot` shows demonstrations, no other does.
        checkpoint: the trained weights, or None for the base model.
        results: directory of the result rows.
        worker: which share of the cells is this process's; None does all.
        reference: the teacher that teacher-forced answers are compared with; None compares nothing.
    """

    config: Config
    condition: str
    checkpoint: Checkpoint | None
    results: Path
    worker: Worker | None = None
    reference: Reference | None = None


@dataclass(frozen=True)
class Plan:
    """What is left to do of an evaluation.

    Attributes:
        job: the evaluation.
        identity: of its rows.
        compared: of the rows of answers that are compared with a teacher; the same if none are.
        encoder: makes its prompts.
        contents: of every cell of the grid.
        mine: how many cells are this process's.
        pending: those of them that are not finished.
    """

    job: Evaluation
    identity: Identity
    compared: Identity
    encoder: PromptEncoder
    contents: Mapping[Place, Contents]
    mine: int
    pending: Sequence[Place]

    def identity_of(self, cell: Place) -> Identity:
        """Of the rows of a cell."""
        return self.compared if is_forced(cell[0]) else self.identity

    def name_of(self, cell: Place) -> str:
        """Of the files of a cell."""
        return cell_name(self.identity_of(cell), cell)


def evaluate(job: Evaluation, *, opener: EngineOpener = open_engine) -> Identity:
    """Evaluate all cells that exist and are not finished yet; print one line for each.

    See `evaluate_all`.
    """
    return evaluate_all([job], opener=opener)[0]


def evaluate_all(jobs: Sequence[Evaluation], *, opener: EngineOpener = open_engine) -> list[Identity]:
    """Evaluate several models or checkpoints one after the other, under one progress bar.

    A model is loaded only where a cell is left to do. A cell is finished where its rows are there, and what they
    answer is what would be asked now.

    Args:
        jobs: what to evaluate.
        opener: opens the engine of each.

    Raises:
        ConfigError, TaskError: a task in none of the languages, a model that cannot be opened, a checkpoint that
            was trained with another chat template.
        StoreError: a torn result file in the way.
        OutputError: result files that cannot be written.
    """
    plans = plan_all(jobs)
    total = sum(plan.contents[cell].examples for plan in plans for cell in plan.pending)
    with Progress(", ".join(dict.fromkeys(job.condition for job in jobs)), total, "answers") as progress:
        for plan in plans:
            if len(plans) > 1 and plan.job.checkpoint is not None:
                progress.say(f"step {plan.job.checkpoint.step}: {plan.job.checkpoint.path}")
            opened = cache(partial(opener, plan.job.config, plan.job.checkpoint))
            for cell in plan.pending:
                evaluate_cell(plan, cell, opened, progress)
    return [plan.identity for plan in plans]


def plan_all(jobs: Sequence[Evaluation]) -> list[Plan]:
    """What is left to do of several evaluations; loads no model.

    Raises:
        ConfigError, TaskError: see `evaluate_all`.
    """
    known: dict[tuple[int, str, Place], Contents] = {}
    return [_plan(job, known) for job in jobs]


def evaluate_cell(plan: Plan, cell: Place, opened: Callable[[], Engine], progress: Bar) -> None:
    """Answer, score and write a cell that is not finished; say how it came out.

    Args:
        plan: that the cell is pending in.
        cell: task and language.
        opened: the model; asked for only where there are questions left.
        progress: counts answers.

    Raises:
        StoreError: a torn result file in the way.
        OutputError: result files that cannot be written.
    """
    job, started = plan.job, time.monotonic()
    rows = _finished_predictions(plan, cell)
    if rows is None:
        rows = _answer(plan, opened(), cell, progress)
    against = job.reference.label if job.reference is not None and is_forced(cell[0]) else None
    metrics = metric_rows(rows, plan.contents[cell], against)
    write_rows(job.results, "metrics", metrics, plan.name_of(cell))
    number = plan.mine - len(plan.pending) + 1 + plan.pending.index(cell)
    seconds = time.monotonic() - started
    progress.say(f"[{number}/{plan.mine}] {cell_line(job.condition, metrics)} in {seconds:.1f} s")


def _plan(job: Evaluation, known: dict[tuple[int, str, Place], Contents]) -> Plan:
    """Look at data, model and finished cells; `known` holds the contents of cells that were looked at before."""
    tasks = _tasks(job.config)
    check_demonstrations(job.config, job.condition, tasks)
    grid = cells(tasks, job.config.languages)
    if grid.absent and not known:
        print(f"skipped, no such data: {', '.join(f'{t}/{lang}' for t, lang in grid.absent)}")
    encoder = PromptEncoder(open_tokenizer(job.config, job.checkpoint))
    model = examine(job.config, job.checkpoint, encoder)
    check_template(job.checkpoint, encoder.template_hash)
    contents = {}
    for cell in grid.present:
        key = (id(job.config), job.condition, cell)
        if key not in known:
            questions = draw_questions(job.config, job.condition, *cell)
            protocol = forced_protocol(job.config, cell[0], job.reference) if is_forced(cell[0]) else ()
            known[key] = contents_of(TASKS[cell[0]], questions, protocol)
        contents[cell] = known[key]
    asked = (job.config, job.condition, job.checkpoint, model)
    answered = {cell: each for cell, each in contents.items() if job.reference is None or not is_forced(cell[0])}
    identity = compared = latest_generation(job.results, identify(*asked), answered)
    if job.reference is not None:
        forced = {cell: each for cell, each in contents.items() if cell not in answered}
        compared = latest_generation(job.results, identify(*asked, against=job.reference.fingerprint), forced)
    mine = grid.present[job.worker.index :: job.worker.count] if job.worker else grid.present
    if job.worker:
        print(f"{job.worker}: {len(mine)} of {len(grid.present)} cells")
    plan = Plan(job, identity, compared, encoder, contents, len(mine), mine)
    pending = [cell for cell in mine if read_rows(job.results, "metrics", plan.name_of(cell)) is None]
    if done := len(mine) - len(pending):
        print(f"{job.condition}: {done} of {len(mine)} cells are already finished, skipped")
    return dataclasses.replace(plan, pending=pending)


def _answer(plan: Plan, engine: Engine, cell: Place, progress: Bar) -> list[dict[str, Any]]:
    """Let the model answer a cell; the rows of `predictions` that were written."""
    job, questions = plan.job, draw_questions(plan.job.config, plan.job.condition, *cell)
    rows = (_forced if is_forced(cell[0]) else _written)(plan, engine, cell, questions, progress)
    progress.advance(len(questions) - len(rows))
    write_rows(job.results, "predictions", rows, plan.name_of(cell))
    return rows


def _written(
    plan: Plan, engine: Engine, cell: Place, questions: Sequence[Question], progress: Bar
) -> list[dict[str, Any]]:
    """Rows of answers that the model writes or chooses."""
    job = plan.job
    limit = answer_limit(job.config, plan.encoder, *cell)
    asked = encode_questions(
        job.config, plan.encoder, *cell, questions, context_tokens=engine.context_tokens, max_new_tokens=limit
    )
    write_run(job.results, plan.identity_of(cell))
    return predict(
        job.config,
        engine,
        plan.encoder,
        plan.identity,
        cell,
        asked,
        max_new_tokens=limit,
        progress=progress.advance,
    )


def _forced(
    plan: Plan, engine: Engine, cell: Place, questions: Sequence[Question], progress: Bar
) -> list[dict[str, Any]]:
    """Rows of gold answers that are scored."""
    job = plan.job
    asked = encode_forced(
        job.config, plan.encoder, job.reference, *cell, questions, context_tokens=engine.context_tokens
    )
    teacher = teacher_of(job.reference, asked)
    write_run(job.results, plan.identity_of(cell))
    return predict_forced(
        job.config, engine, plan.encoder, plan.compared, teacher, cell, asked, progress=progress.advance
    )


def _tasks(config: Config) -> list[str]:
    """The tasks that can be scored by the method asked for; others are named, all of them an error."""
    if config.evaluation.method == "generate":
        return config.tasks
    if config.evaluation.method == "classify":
        raise ConfigError(
            f"evaluation.method: classify works with tasks=[{PREFERENCE}] only, got {', '.join(config.tasks)}; set "
            "generate or "
            "likelihood"
        )
    with_labels = [name for name in config.tasks if TASKS[name].labels or is_forced(name)]
    if not with_labels:
        raise ConfigError(
            f"evaluation.method: likelihood compares the labels of a task, but {', '.join(config.tasks)} "
            f"have none; tasks with labels are {', '.join(name for name in TASKS.shipped if TASKS[name].labels)}"
        )
    if others := [name for name in config.tasks if name not in with_labels]:
        print(f"skipped by likelihood because they have no labels: {', '.join(others)}")
    return with_labels


def _finished_predictions(plan: Plan, cell: Place) -> list[dict[str, Any]] | None:
    """Predictions of a cell that was interrupted between its two files.

    Raises:
        StoreError: they answer other questions than are asked now.
    """
    name = plan.name_of(cell)
    rows = read_rows(plan.job.results, "predictions", name)
    if rows is None:
        return None
    questions = draw_questions(plan.job.config, plan.job.condition, *cell)
    asked = {asked_and_gold(TASKS[cell[0]], question.example) for question in questions}
    if any((row["example_id"], row["question"], row["gold"]) not in asked for row in rows):
        raise StoreError(
            f"{plan.job.results / 'predictions' / name}.parquet: left by an interrupted run on different data; "
            "delete it and run the same command again"
        )
    return rows
