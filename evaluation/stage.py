"""The evaluation stage as one function, for programs: what `evaluate-model` does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from logitbank.configs import Config, ConfigError, ConfigSource, config_of
from logitbank.configs.schema import EvaluationConfig
from logitbank.evaluation.checkpoints import (
    Checkpoint,
    asked_condition,
    check_condition,
    check_model,
    checkpoints_at_steps,
    trained_from,
)
from logitbank.evaluation.classify import Classification, classify_all
from logitbank.evaluation.questions import is_forced
from logitbank.evaluation.reference import Reference, open_reference
from logitbank.evaluation.run import Evaluation, evaluate_all
from logitbank.models.workers import Worker
from logitbank.preference import TASK as PREFERENCE


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and how: the keyword arguments of `evaluate`, which says what they mean."""

    results: Path
    checkpoint: Path | None = None
    steps: Sequence[int] = ()
    condition: str | None = None
    new_condition: bool = False
    store: str | None = None
    view: str | None = None
    calibrate: bool = False
    no_calibration: bool = False
    worker: Worker | tuple[int, int] | None = None


def evaluate(
    config: ConfigSource,
    *,
    results: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    steps: Sequence[int] = (),
    condition: str | None = None,
    new_condition: bool = False,
    store: str | os.PathLike[str] | None = None,
    view: str | None = None,
    calibrate: bool = False,
    no_calibration: bool = False,
    worker: Worker | tuple[int, int] | None = None,
) -> None:
    """Let a model answer every task and language, score it, and write the rows; finished cells are skipped.

    Args:
        config: a configuration, a file or shipped name, a mapping of keys, or a list of these and of `key=value`.
        results: directory of the result rows, which `Catalogue` reads.
        checkpoint: an adapter or model that train-student wrote; None for the model of the configuration.
        steps: evaluate `CHECKPOINT/checkpoint-N` for each of these steps.
        condition: its name in the tables; None for the condition it was trained for.
        new_condition: whether `condition` is a name that the user chose.
        store: URL of a teacher's store on the evaluated split: adds `kl` and `agreement` to conversations. For
            comparisons: the label store that has the held-out fold.
        view: which view of it, if it has several.
        calibrate: for comparisons: fit a temperature, write it beside the checkpoint, and evaluate with it.
        no_calibration: for comparisons: ignore a temperature that was fitted before.
        worker: (i, n) if n processes share the cells.

    Raises:
        ConfigError, TaskError: anything that the user must fix, before a model is loaded.
        StoreError: a store or result file that cannot be used.
        OutputError: result files that cannot be written.
    """
    options = Options(
        results=Path(results),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        steps=steps,
        condition=condition,
        new_condition=new_condition,
        store=None if store is None else os.fspath(store),
        view=view,
        calibrate=calibrate,
        no_calibration=no_calibration,
        worker=worker,
    )
    settings = config_of(config)
    if settings.is_preference:
        classify_all(classifications(settings, options))
    else:
        evaluate_all(evaluations(settings, options))


def check_options(config: Config, options: Options) -> None:
    """Raise what `evaluate` would for checkpoint, steps and condition; loads no model."""
    _resolved(config, options)


def evaluations(config: Config, options: Options) -> list[Evaluation]:
    """What to evaluate of tasks that are answered in tokens; errors as of `evaluate`."""
    config, condition, evaluated, worker = _resolved(config, options)
    for given, option in ((options.calibrate, "--calibrate"), (options.no_calibration, "--no-calibration")):
        if given:
            raise ConfigError(
                f"{option}: works with tasks=[{PREFERENCE}] only, got {', '.join(config.tasks)}; leave it out"
            )
    reference = _reference(options, config)
    return [Evaluation(config, condition, each, options.results, worker, reference) for each in evaluated]


def classifications(config: Config, options: Options) -> list[Classification]:
    """What to evaluate of comparisons; errors as of `evaluate`."""
    config, condition, evaluated, worker = _resolved(config, options)
    if config.evaluation.engine != EvaluationConfig().engine:
        raise ConfigError(
            f"evaluation.engine: {config.evaluation.engine} has no class logits; expected {EvaluationConfig().engine}"
        )
    if options.view is not None:
        raise ConfigError("--view: not supported for comparisons; leave it out")
    if options.calibrate and options.no_calibration:
        raise ConfigError("--no-calibration: expected one of --calibrate and --no-calibration, got both")
    return [
        Classification(
            config,
            condition,
            each,
            options.results,
            options.store,
            calibrate=options.calibrate,
            raw=options.no_calibration,
            worker=worker,
        )
        for each in evaluated
    ]


def _resolved(config: Config, options: Options) -> tuple[Config, str, Sequence[Checkpoint | None], Worker | None]:
    """The configuration with the checkpoints' model, the condition's name, the checkpoints, and the share of work."""
    if options.steps and options.checkpoint is None:
        raise ConfigError("--steps: needs --checkpoint DIR, the directory that contains checkpoint-<step>")
    checkpoints = [] if options.checkpoint is None else checkpoints_at_steps(options.checkpoint, list(options.steps))
    condition = asked_condition(options.condition, checkpoints)
    check_condition(condition, checkpoints, new=options.new_condition)
    config = dataclasses.replace(config, model=trained_from(config.model, checkpoints))
    check_model(config.model.name, checkpoints)
    worker = Worker(*options.worker, "worker") if isinstance(options.worker, tuple) else options.worker
    return config, condition, checkpoints or [None], worker


def _reference(options: Options, config: Config) -> Reference | None:
    if options.store is None:
        if options.view is not None:
            raise ConfigError("--view: needs --store URL")
        return None
    if not any(map(is_forced, config.tasks)):
        raise ConfigError(
            f"--store: compares the answers of conversations, but {', '.join(config.tasks)} "
            f"{'has' if len(config.tasks) == 1 else 'have'} none; leave it out, or add chat to tasks"
        )
    return open_reference(options.store, options.view, config)
