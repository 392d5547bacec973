"""The training log for people who watch: TensorBoard files and Weights & Biases, both optional."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.configs.schema import ConfigError, TrainingConfig


class Trackers:
    """Sends log rows to whatever `training.tensorboard` and `training.wandb_project` ask for."""

    def __init__(self, training: TrainingConfig, directory: Path, about: Mapping[str, Any], first_step: int) -> None:
        """Open the trackers; call it on the main process only.

        Args:
            training: says which.
            directory: the run's output; TensorBoard files go to `directory/tensorboard`.
            about: the run's description.
            first_step: steps from here on are logged anew after a resume.

        Raises:
            ConfigError: a package that is asked for is not installed.
        """
        self._tensorboard: Any = None
        self._wandb: Any = None
        if training.tensorboard:
            module = _import("torch.utils.tensorboard", "training.tensorboard", "tensorboard")
            self._tensorboard = module.SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)
        if training.wandb_project is not None:
            wandb = _import("wandb", "training.wandb_project", "wandb")
            self._wandb = wandb.init(
                project=training.wandb_project,
                id=about["run"],
                name=about["run"],
                config=dict(about),
                dir=str(directory),
                resume="allow",
            )

    def log(self, step: int, rows: Sequence[tuple[str, str, float]]) -> None:
        """Log `(task, metric, value)` rows as `task/metric`."""
        if self._tensorboard is not None:
            for task, metric, value in rows:
                self._tensorboard.add_scalar(f"{task}/{metric}", value, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log({f"{task}/{metric}": value for task, metric, value in rows}, step=step)

    def close(self) -> None:
        """Write out what is buffered."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _import(module: str, key: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{key}: the package {package} is not installed; pip install {package}") from error
