"""Preferences, from comparisons to a submission: teachers out of fold, students, one merged and calibrated model.

    logitbank study preference --output runs/preference --config preference \\
        --teacher llama=meta-llama/Llama-3.1-8B-Instruct --teacher qwen=Qwen/Qwen3-8B model.name=google/gemma-2-9b-it
    logitbank study preference --output runs/small --config preference --teacher big=DIR model.name=DIR \\
        preference.train=train.csv preference.validation=validation.csv preference.test=test.csv

--dry-run prints every command as you would type it; --slurm submits them. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence

from logitbank.command import CommandGroup, CommandParser, make_directory, run_command
from logitbank.configs.arguments import add_config_arguments, overrides_of
from logitbank.errors import ConfigError
from logitbank.experiment import NO_VIEW, VIEWS
from logitbank.scripts.arguments import add_output, add_processes
from logitbank.scripts.ending import Ending
from logitbank.scripts.preference_plan import CALIBRATED_ON, Command, Plan, Teacher
from logitbank.scripts.slurm.cluster import add_cluster, options_of, print_jobs, submit_jobs
from logitbank.scripts.slurm.plan import Job
from logitbank.scripts.stages import heading, run_here

VIEW_NAME = re.compile(r"[a-z][a-z0-9_]*")
ROWS = ("train", "external", "all")
METHODS = ("gptq", "int8")
COMMANDS = CommandGroup(
    "logitbank",
    "The commands of a preference study.",
    {
        "build-teacher-cache": ("logitbank.teacher_cache.build_command", "rows, folds and teachers' scores"),
        "inspect-cache": ("logitbank.teacher_cache.inspection.command", "proof that the scores are out of fold"),
        "train-student": ("logitbank.student_train.train_command", "teachers and students"),
        "export-model": ("logitbank.student_train.export.command", "averaged, merged and quantised models"),
        "evaluate-model": ("logitbank.evaluation.evaluate_command", "calibration and test rows"),
        "query-results": ("logitbank.evaluation.query_command", "submission and tables"),
    },
)


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank study preference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser)
    add_config_arguments(parser)
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a teacher: the name of its view, and a path, hub id or YAML file; can be repeated",
    )
    parser.add_argument(
        "--post-pretrain", action="store_true", help="first train each teacher on the external comparisons"
    )
    parser.add_argument(
        "--student-rows", choices=ROWS, default="all", help="comparisons that students train on (default: all)"
    )
    parser.add_argument("--quantize", choices=METHODS, help="also quantise the merged student (default: no)")
    parser.add_argument(
        "--calibrate-on",
        choices=CALIBRATED_ON,
        default="validation",
        help="rows that temperatures are fitted on: the validation split, or the folds that students left out "
        "(default: validation)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands, or with --slurm the jobs, without running them"
    )
    parser.add_argument("--slurm", action="store_true", help="submit the steps to a Slurm cluster")
    add_cluster(parser)
    add_processes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_command(lambda: _run(arguments), resumes=not (arguments.dry_run or arguments.slurm))


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the arguments describe.

    Raises:
        ConfigError: no teacher, two of one name, a name that no view can have, or settings that are wrong.
    """
    plan = Plan(
        output=arguments.output,
        teachers=teachers_of(arguments.teacher),
        files=tuple(arguments.config),
        overrides=tuple(overrides_of(arguments)),
        post_pretrain=arguments.post_pretrain,
        student_rows=arguments.student_rows,
        quantize=arguments.quantize,
        calibrate_on=arguments.calibrate_on,
        processes=arguments.processes,
    )
    plan.check()
    return plan


def teachers_of(given: Sequence[str]) -> tuple[Teacher, ...]:
    """The teachers that `--teacher` names.

    Raises:
        ConfigError: see `plan_of`.
    """
    found: dict[str, Teacher] = {}
    for text in given:
        name, _, model = text.partition("=")
        if not model or not VIEW_NAME.fullmatch(name) or name in (NO_VIEW, *VIEWS):
            raise ConfigError(
                "--teacher: expected NAME=MODEL, where NAME is lower-case letters, digits and underscores, starts "
                f"with a letter and is not one of {', '.join((NO_VIEW, *VIEWS))}; got {text}"
            )
        if name in found:
            raise ConfigError(f"--teacher: expected each name once, got {name} twice")
        is_file = model.endswith((".yaml", ".yml"))
        found[name] = Teacher(name, files=(model,)) if is_file else Teacher(name, model)
    if not found:
        raise ConfigError("--teacher: expected NAME=MODEL, got none; several may be named")
    return tuple(found.values())


def _run(arguments: argparse.Namespace) -> None:
    plan = plan_of(arguments)
    if arguments.slurm:
        jobs, options = slurm_jobs(plan, workers=arguments.teacher_jobs), options_of(arguments)
        if arguments.dry_run:
            print_jobs(jobs, options)
        else:
            submit_jobs(jobs, options, plan.output)
    elif arguments.dry_run:
        print(shown(plan))
    else:
        run(plan)


def shown(plan: Plan) -> str:
    """Every command, each as a line for a shell, below the title of its step."""
    lines = []
    for number, stage in enumerate(plan.stages(), start=1):
        lines += ["", f"# {number}. {stage.title}"]
        lines += [shlex.join(command) for task in stage.tasks for command in task]
    return "\n".join(lines[1:])


def run(plan: Plan) -> None:
    """Every step, one after another.

    Raises:
        LogitbankError: a command failed; one that was launched has said why.
    """
    ending = Ending(plan.output, [plan.store])
    make_directory("--output", plan.output)
    for number, stage in enumerate(plan.stages(), start=1):
        heading(f"{number}. {stage.title}")
        for task in stage.tasks:
            for command in task:
                run_one(command)
    ending.print()


def run_one(command: Command) -> None:
    """A command in this process, which spares the imports; a launched one as processes of its own."""
    if command[0] == "accelerate":
        run_here(list(command))
    else:
        COMMANDS.perform(command)


def slurm_jobs(plan: Plan, *, workers: int) -> list[Job]:
    """One job for each step; its tasks are an array, or `workers` array tasks share it.

    Batch scripts take array tasks for workers that share a store's shards, so a step that is shared runs whole in each.
    """
    jobs = []
    for stage in plan.stages():
        texts = tuple(" && ".join(map(shlex.join, task)) for task in stage.tasks)
        if stage.shared:
            texts *= workers
        gpus = 0 if not stage.gpu else plan.processes or 1
        jobs.append(Job("commands.sbatch", texts, len(texts) if len(texts) > 1 else None, stage.after, gpus))
    return jobs
