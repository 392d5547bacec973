"""`per_task`: a λ for each task, `distillation.lambda_per_task`."""

from __future__ import annotations

import torch

from logitbank.configs.schema import Config, ConfigError
from logitbank.student_train.strategies.base import Setting, Strategy


class PerTask(Strategy):
    """The base is the configured value of each task."""

    sets_base = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        per_task = setting.config.distillation.lambda_per_task
        values = [per_task[task] for task in setting.tasks]
        self._base = torch.tensor(values, dtype=torch.float32, device=setting.accelerator.device)

    @classmethod
    def check(cls, config: Config) -> None:
        """Every task needs a value."""
        require_values(config)

    def base(self) -> torch.Tensor:
        """(tasks,) float32."""
        return self._base


def require_values(config: Config) -> None:
    """Raise `ConfigError` for a task without a value in `lambda_per_task`."""
    for task in config.tasks:
        if task not in config.distillation.lambda_per_task:
            raise ConfigError(
                f"distillation.lambda_per_task: expected a value for {task}, got none; "
                f"add distillation.lambda_per_task.{task}=VALUE"
            )
