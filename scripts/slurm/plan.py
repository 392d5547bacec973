"""The jobs of a study, and what they cost, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitbank.configs import Config
from logitbank.experiment import CONDITIONS, DEFAULT_VIEWS, NO_VIEW, STUDENTS, STUDY_CONDITIONS
from logitbank.scripts.stages import Stages

UNTRAINED = [name for name in STUDY_CONDITIONS if not CONDITIONS[name].trained]


@dataclass(frozen=True)
class Job:
    """One submission.

    Attributes:
        script: file name of the batch script.
        arguments: of the script.
        tasks: of the job array; None for a single job.
        after: indices, in the list of jobs, of those that have to succeed first.
        gpus: of each task; of each node, where a job has several.
        nodes: of a job that is spread over several; None for one that needs a part of one.
    """

    script: str
    arguments: tuple[str, ...]
    tasks: int | None = None
    after: tuple[int, ...] = ()
    gpus: int = 0
    nodes: int | None = None


@dataclass(frozen=True)
class Work:
    """What the jobs of a study do.

    Attributes:
        models: how many.
        teacher_tokens: that all teachers read.
        store_bytes: expected size of all stores.
        student_steps: optimizer steps of all students.
        evaluated: examples that all conditions answer, at most; a split may have fewer.
    """

    models: int
    teacher_tokens: int
    store_bytes: float
    student_steps: int
    evaluated: int


@dataclass(frozen=True)
class Rates:
    """What one GPU was measured to do in a second; None if it was not.

    Attributes:
        teacher: teacher tokens.
        student: optimizer steps.
        evaluation: answered examples.
    """

    teacher: float | None = None
    student: float | None = None
    evaluation: float | None = None


def plan_jobs(
    studies: Sequence[Stages], output: Path, *, teacher_jobs: int, gpus: int, ray_nodes: int | None = None
) -> list[Job]:
    """Per model teacher, students and evaluations, each after what it needs; then one report.

    Args:
        studies: the models.
        output: of all of them.
        teacher_jobs: array tasks of a teacher.
        gpus: of a teacher's or student's task, or of each node of a teacher on Ray.
        ray_nodes: of a teacher that is one job with Ray on all its nodes; None for an array.
    """
    jobs: list[Job] = []
    evaluations = []
    for stages in studies:
        settings = (*(("--config", *stages.files) if stages.files else ()), *stages.overrides)
        views = [item for view in DEFAULT_VIEWS for item in ("--view", view)]
        work, results = str(output / stages.name), str(stages.results)
        teacher = len(jobs)
        building = ("--store", stages.store, *views, *settings)
        if ray_nodes is None:
            jobs.append(Job("teacher.sbatch", building, teacher_jobs, gpus=gpus))
        else:
            jobs.append(Job("ray.sbatch", building, gpus=gpus, nodes=ray_nodes))
        names, its_views = " ".join(STUDENTS), " ".join(CONDITIONS[name].view or NO_VIEW for name in STUDENTS)
        jobs.append(
            Job("students.sbatch", (names, its_views, work, results, *settings), len(STUDENTS), (teacher,), gpus=gpus)
        )
        for conditions, trained_in, after in ((STUDENTS, work, (teacher + 1,)), (UNTRAINED, "", ())):
            evaluations.append(len(jobs))
            arguments = (" ".join(conditions), trained_in, results, *settings)
            jobs.append(Job("evaluation.sbatch", arguments, len(conditions), after, gpus=1))
    jobs.append(Job("report.sbatch", (str(output / "results"), str(output / "report.md")), after=tuple(evaluations)))
    return jobs


def work_of(configs: Sequence[Config]) -> Work:
    """What a study of these models does; plans each teacher's prompts, loads no model.

    Raises:
        ConfigError, TaskError: a model whose teacher cannot be planned.
    """
    from logitbank.tasks.data import cells  # with datasets and transformers: not for --help
    from logitbank.teacher_cache.build import estimate_store

    estimates = [estimate_store(config) for config in configs]
    steps = [c.training.steps_over(estimate.examples) for c, estimate in zip(configs, estimates, strict=True)]
    limits = [config.evaluation.max_samples or 0 for config in configs]  # loaded ones have a number
    answers = [len(cells(c.tasks, c.languages).present) * limit for c, limit in zip(configs, limits, strict=True)]
    return Work(
        models=len(configs),
        teacher_tokens=sum(estimate.tokens for estimate in estimates),
        store_bytes=sum(estimate.bytes for estimate in estimates),
        student_steps=len(STUDENTS) * sum(steps),
        evaluated=len(STUDY_CONDITIONS) * sum(answers),
    )


def describe(work: Work, rates: Rates) -> list[str]:
    """The work in a line, and GPU-hours in one more for each rate."""
    models = f"{work.models} {'model' if work.models == 1 else 'models'}"
    lines = [
        f"{models}: {work.teacher_tokens:,} teacher tokens, stores of about {work.store_bytes / 1e6:,.1f} MB, "
        f"{work.student_steps:,} student steps, at most {work.evaluated:,} answers"
    ]
    for name, count, rate, unit in (
        ("teacher", work.teacher_tokens, rates.teacher, "tokens/s"),
        ("students", work.student_steps, rates.student, "steps/s"),
        ("evaluation", work.evaluated, rates.evaluation, "answers/s"),
    ):
        if rate is not None:
            most = "at most " if name == "evaluation" else ""
            lines.append(f"{name + ':':11} {most}{count / rate / 3600:.1f} GPU-hours at {rate:g} {unit}")
    return lines
