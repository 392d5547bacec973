"""Submitting jobs to a Slurm cluster, or printing what would be submitted."""

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

from logitbank.command import CommandParser, make_directory, positive
from logitbank.errors import LogitbankError
from logitbank.scripts.slurm.plan import Job


def add_cluster(parser: CommandParser) -> None:
    """Add `--teacher-jobs`, `--time`, `--partition` and `--account`."""
    parser.add_argument(
        "--teacher-jobs", type=positive(int), default=4, metavar="N", help="array tasks per teacher (default: 4)"
    )
    parser.add_argument("--time", default="24:00:00", help="time limit of a task (default: 24:00:00)")
    parser.add_argument("--partition", metavar="NAME", help="partition to submit to")
    parser.add_argument("--account", metavar="NAME", help="account to charge")


def options_of(arguments: argparse.Namespace) -> list[str]:
    """The options of sbatch that every job gets, from those of `add_cluster` and `--output`."""
    found = [f"--time={arguments.time}", f"--output={arguments.output / 'logs'}/%x-%A_%a.out"]
    return found + [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(arguments, name))]


def print_jobs(jobs: Sequence[Job], options: Sequence[str]) -> None:
    """Print each submission, with `jobN` for the id that it will get."""
    for number, job in enumerate(jobs, start=1):
        after = [f"job{index + 1}" for index in job.after]
        print(f"job{number}: {shlex.join(sbatch(job, _scripts(), options, after))}")


def submit_jobs(jobs: Sequence[Job], options: Sequence[str], output: Path, *, gpus: int = 1) -> None:
    """Submit all jobs in their order and print the id of each.

    Args:
        jobs: each after those that it waits for.
        options: of sbatch, for every job.
        output: of the study; logs go to its `logs`.
        gpus: of each task, for scripts that launch processes.

    Raises:
        LogitbankError: no sbatch here, or it refuses a job; says which are submitted.
    """
    if shutil.which("sbatch") is None:
        raise LogitbankError("sbatch: not found; run this on a machine with Slurm, or use --dry-run")
    make_directory("--output", output / "logs")
    commands = f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"  # ours, where no environment is active
    _submit(jobs, options, {**os.environ, "PATH": commands, "GPUS": str(gpus)})


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
    if job.nodes is not None:
        command.append(f"--nodes={job.nodes}")
    if job.gpus:
        command.append(f"--gres=gpu:{job.gpus}")
    return [*command, str(scripts / job.script), *job.arguments]


def _submit(jobs: Sequence[Job], options: Sequence[str], environment: Mapping[str, str]) -> None:
    ids: list[str] = []
    for job in jobs:
        command = sbatch(job, _scripts(), options, [ids[index] for index in job.after])
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
            submitted = f"; {len(ids)} jobs are submitted: scancel {' '.join(ids)}" if ids else ""
            raise LogitbankError(f"sbatch rejected {job.script}: {said}{submitted}") from None
        ids.append(done.stdout.strip().partition(";")[0])  # a federation appends its cluster
        print(f"{ids[-1]}: {job.script}" + ("" if job.tasks is None else f", {job.tasks} tasks"), flush=True)


def _scripts() -> Path:
    return Path(str(resources.files("logitbank.scripts.slurm")))  # as files: sbatch needs paths
