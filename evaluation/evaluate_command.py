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
from logitbank.configs.schema import EvaluationConfig
from logitbank.evaluation.checkpoints import (
    Checkpoint,
    asked_condition,
    check_condition,
    check_model,
    checkpoints_at_steps,
    trained_from,
)
from logitbank.experiment import CONDITIONS
from logitbank.preference import TASK as PREFERENCE

if TYPE_CHECKING:
    from logitbank.evaluation.classify import Classification
    from logitbank.evaluation.on_ray import CellsActor, ComparisonsActor
    from logitbank.evaluation.reference import Reference
    from logitbank.evaluation.run import Evaluation
    from logitbank.models.workers import Worker


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="evaluate-model",
        description="Evaluate a model or checkpoint on every task and language of the configuration. "
        "Finished cells are skipped: run the same command to resume.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--condition",
        metavar="NAME",
        help=f"{', '.join(CONDITIONS)}; fewshot is the model before training, with demonstrations "
        "(default with --checkpoint: what it was trained for)",
    )
    parser.add_argument("--new-condition", action="store_true", help="--condition is a name of your own")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="adapter or model that training wrote")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[], metavar="N", help="evaluate DIR/checkpoint-N for each N"
    )
    parser.add_argument(
        "--worker",
        metavar="I/N",
        help="this process is worker I (from 0) of N that share the cells (default: as torchrun says)",
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="store of a teacher on the evaluated split (build-teacher-cache --split): adds kl and agreement to "
        "conversations; with evaluation.split=held_out or --calibrate the label store that has the fold",
    )
    parser.add_argument("--view", metavar="VIEW", help="which view of --store, where it has several")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="of preferences: fit a temperature, write calibration.json beside the checkpoint, and evaluate with it; "
        "on the calibration part of validation, or with --store on half of the fold that the student left out",
    )
    parser.add_argument("--no-calibration", action="store_true", help="leave out a temperature that was fitted")
    add_ray(parser, what="cells")
    parser.add_argument("--results", required=True, type=Path, metavar="DIR", help="where the rows go")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_command(lambda: _evaluate(arguments), resumes=True)


def open_actor(arguments: argparse.Namespace, number: int) -> CellsActor | ComparisonsActor:
    """What an actor of Ray evaluates with: all that the command was asked."""
    from logitbank.evaluation.on_ray import CellsActor, ComparisonsActor

    asked = _read(arguments)
    if asked.config.is_preference:
        return ComparisonsActor(_classifications(arguments, asked))
    return CellsActor(_evaluations(arguments, asked))


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What the arguments say: which configuration, condition, checkpoints, and share of the work."""

    config: Config
    condition: str
    evaluated: Sequence[Checkpoint | None]
    worker: Worker | None


def _read(arguments: argparse.Namespace) -> _Asked:
    from logitbank.models.workers import find_worker

    config = load(arguments)
    worker = find_worker(arguments.worker, os.environ, arrays=False)
    if arguments.steps and arguments.checkpoint is None:
        raise ConfigError("--steps: needs --checkpoint DIR, the directory that holds checkpoint-<step>")
    checkpoints = [] if arguments.checkpoint is None else checkpoints_at_steps(arguments.checkpoint, arguments.steps)
    condition = asked_condition(arguments.condition, checkpoints)
    check_condition(condition, checkpoints, new=arguments.new_condition)
    config = dataclasses.replace(config, model=trained_from(config.model, checkpoints))
    check_model(config.model.name, checkpoints)
    return _Asked(config, condition, checkpoints or [None], worker)


def _evaluate(arguments: argparse.Namespace) -> None:
    ray, asked = ray_options(arguments), _read(arguments)
    if ray is not None:
        _evaluate_on_ray(arguments, asked, ray)
    elif asked.config.is_preference:
        from logitbank.evaluation.classify import classify_all  # torch and transformers: not for --help

        classify_all(_classifications(arguments, asked))
    else:
        from logitbank.evaluation.run import evaluate_all

        evaluate_all(_evaluations(arguments, asked))


def _evaluate_on_ray(arguments: argparse.Namespace, asked: _Asked, options: RayOptions) -> None:
    from logitbank.evaluation.on_ray import evaluate_on_ray

    if asked.worker is not None:
        raise ConfigError(f"--ray: expected one process, got {asked.worker}; start the command without a launcher")
    config = asked.config
    evaluate_on_ray(
        Factory("logitbank.evaluation.evaluate_command:open_actor", arguments),
        options,
        "evaluations" if config.is_preference else "answers",
        tensor_parallel=config.vllm.tensor_parallel if config.evaluation.engine == "vllm" else 1,
    )


def _evaluations(arguments: argparse.Namespace, asked: _Asked) -> list[Evaluation]:
    from logitbank.evaluation.run import Evaluation

    for given, option in ((arguments.calibrate, "--calibrate"), (arguments.no_calibration, "--no-calibration")):
        if given:
            raise ConfigError(
                f"{option}: is of tasks=[{PREFERENCE}], got {', '.join(asked.config.tasks)}; leave it out"
            )
    reference = _reference(arguments, asked.config)
    return [
        Evaluation(asked.config, asked.condition, each, arguments.results, asked.worker, reference)
        for each in asked.evaluated
    ]


def _classifications(arguments: argparse.Namespace, asked: _Asked) -> list[Classification]:
    from logitbank.evaluation.classify import Classification

    config = asked.config
    if config.evaluation.engine != EvaluationConfig().engine:
        raise ConfigError(
            f"evaluation.engine: {config.evaluation.engine} has no class logits; expected {EvaluationConfig().engine}"
        )
    if arguments.view is not None:
        raise ConfigError("--view: comparisons are evaluated without a teacher; leave it out")
    if arguments.calibrate and arguments.no_calibration:
        raise ConfigError("--no-calibration: expected one of --calibrate and --no-calibration, got both")
    return [
        Classification(
            config,
            asked.condition,
            each,
            arguments.results,
            arguments.store,
            calibrate=arguments.calibrate,
            raw=arguments.no_calibration,
            worker=asked.worker,
        )
        for each in asked.evaluated
    ]


def _reference(arguments: argparse.Namespace, config: Config) -> Reference | None:
    from logitbank.evaluation.questions import is_forced
    from logitbank.evaluation.reference import open_reference  # zarr: not for --help

    if arguments.store is None:
        if arguments.view is not None:
            raise ConfigError("--view: needs --store URL, the store that has the view")
        return None
    if not any(map(is_forced, config.tasks)):
        raise ConfigError(
            f"--store: compares the answers of conversations, and {', '.join(config.tasks)} "
            f"{'has' if len(config.tasks) == 1 else 'have'} none; leave it out, or add chat to tasks"
        )
    return open_reference(arguments.store, arguments.view, config)


if __name__ == "__main__":
    main()
