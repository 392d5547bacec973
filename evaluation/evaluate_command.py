"""`evaluate-model`: let a model answer, score it, write prediction and metric rows."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logitbank.cluster import Factory, RayOptions, add_ray, ray_options
from logitbank.command import CommandParser, run_command
from logitbank.configs import Config, ConfigError
from logitbank.configs.arguments import add_config_arguments, load
from logitbank.experiment import CONDITIONS

if TYPE_CHECKING:
    from logitbank.evaluation.on_ray import CellsActor, ComparisonsActor
    from logitbank.evaluation.stage import Options


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="evaluate-model",
        description="Evaluate a model or checkpoint on every task and language of the configuration. "
        "Finished cells are skipped, so run the same command to resume.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--condition",
        metavar="NAME",
        help=f"{', '.join(CONDITIONS)}; fewshot is the model before training, with demonstrations "
        "(default with --checkpoint: the condition it was trained for)",
    )
    parser.add_argument("--new-condition", action="store_true", help="accept a --condition of your own")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="adapter or model that train-student wrote")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[], metavar="N", help="evaluate DIR/checkpoint-N for each N"
    )
    parser.add_argument(
        "--worker",
        metavar="I/N",
        help="this process is worker I (from 0) of N that share the cells (default: from torchrun)",
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="store of a teacher on the evaluated split (build-teacher-cache --split): adds kl and agreement to "
        "conversations; with evaluation.split=held_out or --calibrate, the label store with the fold",
    )
    parser.add_argument("--view", metavar="VIEW", help="view of --store to compare with, if it has several")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="preferences: fit a temperature, write calibration.json beside the checkpoint, and evaluate with it; "
        "on the calibration part of validation, or with --store on half of the fold that the student left out",
    )
    parser.add_argument("--no-calibration", action="store_true", help="ignore a temperature that was fitted before")
    add_ray(parser, what="cells")
    parser.add_argument("--results", required=True, type=Path, metavar="DIR", help="directory for result rows")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments), resumes=True)


def open_actor(arguments: argparse.Namespace, number: int) -> CellsActor | ComparisonsActor:
    """What an actor of Ray evaluates with: all that the command was asked."""
    from logitbank.evaluation.on_ray import CellsActor, ComparisonsActor
    from logitbank.evaluation.stage import classifications, evaluations

    config, options = load(arguments), _options(arguments)
    if config.is_preference:
        return ComparisonsActor(classifications(config, options))
    return CellsActor(evaluations(config, options))


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    config, ray = load(arguments), ray_options(arguments)
    from logitbank.evaluation.stage import evaluate  # torch and transformers: not for --help

    options = _options(arguments)
    if ray is not None:
        _evaluate_on_ray(config, arguments, options, ray)
    else:
        evaluate(config, **vars(options))


def _options(arguments: argparse.Namespace) -> Options:
    from logitbank.evaluation.stage import Options
    from logitbank.models.workers import find_worker

    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)}
    return Options(**given | {"worker": find_worker(arguments.worker, os.environ, arrays=False)})


def _evaluate_on_ray(config: Config, arguments: argparse.Namespace, options: Options, ray: RayOptions) -> None:
    from logitbank.evaluation.on_ray import evaluate_on_ray
    from logitbank.evaluation.stage import check_options

    if options.worker is not None:
        raise ConfigError(f"--ray: expected one process, got {options.worker}; start the command without a launcher")
    check_options(config, options)
    evaluate_on_ray(
        Factory("logitbank.evaluation.evaluate_command:open_actor", arguments),
        ray,
        "evaluations" if config.is_preference else "answers",
        tensor_parallel=config.vllm.tensor_parallel if config.evaluation.engine == "vllm" else 1,
    )


if __name__ == "__main__":
    main()
