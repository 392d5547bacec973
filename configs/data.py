"""The part of a configuration that says which examples there are, as the tasks take it."""

from __future__ import annotations

from logitbank.configs.schema import Config
from logitbank.tasks.settings import ChatSettings, DataSettings


def data_settings(config: Config, *, seed: int | None = None) -> DataSettings:
    """What decides the examples of every task.

    Args:
        config: the configuration.
        seed: of random subsets; default `seed` of the configuration.
    """
    chat = config.chat
    files = {"train": chat.train, "validation": chat.validation, "test": chat.test}
    return DataSettings(
        mirror=config.data.mirror,
        sources=config.data.sources,
        seed=config.seed if seed is None else seed,
        files={"chat": {split: file for split, file in files.items() if file is not None}},
        chat=ChatSettings(holdout=chat.holdout, turns=chat.turns, thinking=chat.thinking, context=chat.context),
    )
