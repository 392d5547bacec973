"""The part of a configuration that says which examples there are, as the tasks take it."""

from __future__ import annotations

from logitbank.configs.schema import ChatConfig, Config, PreferenceConfig
from logitbank.preference import TASK
from logitbank.tasks.settings import ChatSettings, DataSettings, PreferenceSettings


def data_settings(config: Config, *, seed: int | None = None) -> DataSettings:
    """What decides the examples of every task.

    Args:
        config: the configuration.
        seed: of random subsets; default `seed` of the configuration.
    """
    chat, preference = config.chat, config.preference
    return DataSettings(
        mirror=config.data.mirror,
        sources=config.data.sources,
        seed=config.seed if seed is None else seed,
        files={task: files for task, files in (("chat", _files(chat)), (TASK, _files(preference))) if files},
        chat=ChatSettings(holdout=chat.holdout, turns=chat.turns, thinking=chat.thinking, context=chat.context),
        preference=PreferenceSettings(
            external=tuple(preference.external),
            holdout=preference.holdout,
            selection=preference.selection,
            dedup=preference.dedup,
            folds=preference.folds,
        ),
    )


def _files(named: ChatConfig | PreferenceConfig) -> dict[str, str]:
    """The files that a section names for its splits."""
    files = {"train": named.train, "validation": named.validation, "test": named.test}
    return {split: file for split, file in files.items() if file is not None}
