"""Which examples students of a configuration learn from; apart from `configs.data`, for it reads data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from logitbank.configs.data import data_settings
from logitbank.configs.schema import Config
from logitbank.tasks.data import draw_training_examples
from logitbank.tasks.spool import Keeper


def training_examples(config: Config, task: str, into: Keeper) -> NDArray[np.int64]:
    """Read the training examples of a task; see `draw_training_examples`.

    Args:
        config: which languages, and how many examples.
        task: one of its tasks.
        into: takes the examples.

    Returns:
        Where they are in `into`.

    Raises:
        TaskError: the task exists in none of the languages, or data that cannot be opened.
    """
    return draw_training_examples(
        task,
        config.languages,
        data_settings(config),
        into,
        train_languages=config.data.train_languages,
        limit=config.data.max_train_per_task,
        limited_by="data.max_train_per_task",
    )
