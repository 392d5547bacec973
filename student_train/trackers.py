"""The training log for people who watch: TensorBoard files and Weights & Biases, by Accelerate's trackers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from logitbank.configs.schema import ConfigError, TrainingConfig
from logitbank.experiment import TrainingRecord


def start_trackers(
    training: TrainingConfig, directory: Path, record: TrainingRecord, first_step: int
) -> list[GeneralTracker]:
    """What `training.tensorboard` and `training.wandb_project` ask for; they write on the main process alone.

    Args:
        training: says which.
        directory: the run's output; TensorBoard files go to `directory/tensorboard`.
        record: of the run.
        first_step: steps from here on are logged anew after a resume.

    Raises:
        ConfigError: a package that is asked for is not installed.
    """
    trackers: list[GeneralTracker] = []
    if training.tensorboard:
        _require("tensorboard", "training.tensorboard")
        trackers.append(TensorBoardTracker("tensorboard", directory, purge_step=first_step))
    if training.wandb_project is not None:
        _require("wandb", "training.wandb_project")
        about = {"id": record.run, "name": record.run, "config": record.to_json()}
        trackers.append(WandBTracker(training.wandb_project, dir=str(directory), resume="allow", **about))
    for tracker in trackers:
        tracker.start()
    return trackers


def _require(package: str, key: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{key}: the package {package} is not installed; pip install {package}")
