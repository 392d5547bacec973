"""The study on a Slurm cluster: teacher, students, evaluation, report, each waiting for what it needs.

    logitbank slurm --output runs/xtreme --config qwen3-1.7b --partition gpu --account me
    logitbank slurm --output runs/xtreme --config qwen3-1.7b llama-3.2-3b --teacher-jobs 16
    logitbank slurm --output runs/xtreme --config qwen3-8b --ray-nodes 4 --gpus 8
    logitbank slurm --output runs/xtreme --config qwen3-1.7b --dry-run \\
        --teacher-rate 20000 --student-rate 1.5 --evaluation-rate 30

SBATCH_* variables are passed on to sbatch. Submit again what failed: what is done is not done twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, positive, run_command
from logitbank.scripts.arguments import add_models, add_output, add_size, models_of, settings_of
from logitbank.scripts.slurm.cluster import add_cluster, options_of, print_jobs, submit_jobs
from logitbank.scripts.slurm.plan import Rates, describe, plan_jobs, work_of
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
    add_cluster(parser)
    parser.add_argument(
        "--gpus",
        type=whole,
        default=1,
        metavar="N",
        help="GPUs per teacher and student task, and per Ray node (default: 1)",
    )
    parser.add_argument(
        "--ray-nodes",
        type=whole,
        metavar="N",
        help="run each teacher as one job of N nodes whose GPUs are scheduled by Ray, instead of --teacher-jobs",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and their cost without submitting them")
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
    jobs = plan_jobs(
        studies, output, teacher_jobs=arguments.teacher_jobs, gpus=arguments.gpus, ray_nodes=arguments.ray_nodes
    )
    options = options_of(arguments)
    if arguments.dry_run:
        print_jobs(jobs, options)
        rates = Rates(arguments.teacher_rate, arguments.student_rate, arguments.evaluation_rate)
        print("", *describe(work_of([stages.config for stages in studies]), rates), sep="\n")
        return
    submit_jobs(jobs, options, output, gpus=arguments.gpus)
