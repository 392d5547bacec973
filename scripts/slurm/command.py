"""The study on a Slurm cluster: teacher, students, evaluation, report, each waiting for what it needs.

    logitbank slurm --output runs/xtreme --config qwen3-1.7b --partition gpu --account me
    logitbank slurm --output runs/xtreme --config qwen3-1.7b llama-3.2-3b --teacher-jobs 16
    logitbank slurm --output runs/xtreme --config qwen3-1.7b --dry-run \\
        --teacher-rate 20000 --student-rate 1.5 --evaluation-rate 30

SBATCH_* variables reach sbatch as ever. Submit again what failed: what is done is not done twice.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from logitbank.command import CommandParser, make_directory, positive, run_command
from logitbank.errors import LogitbankError
from logitbank.scripts.arguments import add_models, add_output, add_size, models_of, settings_of
from logitbank.scripts.slurm.plan import Job, Rates, describe, plan_jobs, work_of
from logitbank.scripts.xtreme import PUBLISHED, stages_of


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank slurm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output(parser)
    add_models(parser)
    add_size(parser, PUBLISHED)
    whole, number = positive(int), positive(float)
    parser.add_argument("--teacher-jobs", type=whole, default=4, metavar="N", help="array tasks a teacher (default: 4)")
    parser.add_argument("--gpus", type=whole, default=1, metavar="N", help="of a teacher and student task (default: 1)")
    parser.add_argument("--time", default="24:00:00", help="limit of a task (default: 24:00:00)")
    parser.add_argument("--partition", metavar="NAME", help="where jobs run")
    parser.add_argument("--account", metavar="NAME", help="who pays")
    parser.add_argument("--dry-run", action="store_true", help="submit nothing: print the jobs and what they cost")
    for name, what in (
        ("teacher", "teacher tokens"),
        ("student", "student steps"),
        ("evaluation", "evaluated examples"),
    ):
        text = f"{what} a second, as measured on one GPU, for --dry-run's GPU-hours"
        parser.add_argument(f"--{name}-rate", type=number, metavar="X", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    studies = stages_of(output, models_of(arguments), settings_of(arguments))
    jobs = plan_jobs(studies, output, teacher_jobs=arguments.teacher_jobs, gpus=arguments.gpus)
    options = [f"--time={arguments.time}", f"--output={output / 'logs'}/%x-%A_%a.out"]
    options += [f"--{name}={getattr(arguments, name)}" for name in ("partition", "account") if getattr(arguments, name)]
    scripts = Path(str(resources.files("logitbank.scripts.slurm")))  # as files: sbatch wants paths
    if arguments.dry_run:
        for number, job in enumerate(jobs, start=1):
            after = [f"job{index + 1}" for index in job.after]
            print(f"job{number}: {shlex.join(sbatch(job, scripts, options, after))}")
        rates = Rates(arguments.teacher_rate, arguments.student_rate, arguments.evaluation_rate)
        print("", *describe(work_of([stages.config for stages in studies]), rates), sep="\n")
        return
    if shutil.which("sbatch") is None:
        raise LogitbankError("sbatch: not found; run this where Slurm's commands are, or with --dry-run")
    make_directory("--output", output / "logs")
    commands = f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"  # ours, where no environment is active
    submit(jobs, scripts, options, {**os.environ, "PATH": commands, "GPUS": str(arguments.gpus)})


def sbatch(job: Job, scripts: Path, options: Sequence[str], after: Sequence[str]) -> list[str]:
    """The submission of a job.

    Args:
        job: what to submit.
        scripts: directory of the batch scripts.
        options: of sbatch, for every job.
        after: ids of the jobs that have to succeed first.
    """
    command = ["sbatch", "--parsable", *options]
    if job.tasks is not None:
        command.append(f"--array=0-{job.tasks - 1}")
    if after:
        command += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    if job.gpus:
        command.append(f"--gres=gpu:{job.gpus}")
    return [*command, str(scripts / job.script), *job.arguments]


def submit(jobs: Sequence[Job], scripts: Path, options: Sequence[str], environment: Mapping[str, str]) -> None:
    """Submit all jobs in their order and print the id of each.

    Raises:
        LogitbankError: sbatch refuses a job; says which are submitted.
    """
    ids: list[str] = []
    for job in jobs:
        command = sbatch(job, scripts, options, [ids[index] for index in job.after])
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
            submitted = f"; {len(ids)} jobs are submitted: scancel {' '.join(ids)}" if ids else ""
            raise LogitbankError(f"sbatch refuses {job.script}: {said}{submitted}") from None
        ids.append(done.stdout.strip().partition(";")[0])  # a federation appends its cluster
        print(f"{ids[-1]}: {job.script}" + ("" if job.tasks is None else f", {job.tasks} tasks"), flush=True)
