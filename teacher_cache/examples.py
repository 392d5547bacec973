"""Which examples a build is about, and in which order a store has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from logitbank.configs import data_settings
from logitbank.configs.schema import Config
from logitbank.tasks import Example
from logitbank.tasks.data import load_examples, training_examples

Cell = tuple[str, str]
TRAIN = "train"


def store_examples(config: Config, split: str, present: Sequence[Cell]) -> list[Example]:
    """The examples of a split, in store order.

    Of `train` those that students learn from; of any other split those that `evaluate-model` asks for.

    Args:
        config: which tasks and languages, and how many examples.
        split: `train`, `validation` or `test`.
        present: the (task, language) cells that exist.

    Raises:
        TaskError: data that cannot be opened.
    """
    if split == TRAIN:
        return _spread([_train(config, task) for task in config.tasks], config.seed)
    by_task: dict[str, list[Example]] = {task: [] for task in config.tasks}
    data = data_settings(config, seed=config.evaluation.sample_seed)
    for task, language in present:
        by_task[task] += load_examples(
            task, split, language, data, limit=config.evaluation.max_samples, limited_by="evaluation.max_samples"
        )
    return _spread(list(by_task.values()), config.seed)


def held_out_examples(config: Config, present: Sequence[Cell]) -> list[Example]:
    """Examples of the validation split: every requested language of a task has an equal share of the task's limit.

    Raises:
        TaskError: data that cannot be opened.
    """
    languages: dict[str, list[str]] = defaultdict(list)
    for task, language in present:
        languages[task].append(language)
    data = data_settings(config)
    examples: list[Example] = []
    for task, having in languages.items():
        share, rest = divmod(config.data.max_validation_per_task, len(having))
        for position, language in enumerate(having):
            limit = share + (position < rest)
            if limit:
                examples += load_examples(
                    task, "validation", language, data, limit=limit, limited_by="data.max_validation_per_task"
                )
    return examples


def _train(config: Config, task: str) -> list[Example]:
    return training_examples(
        task,
        config.languages,
        data_settings(config),
        train_languages=config.data.train_languages,
        limit=config.data.max_train_per_task,
        limited_by="data.max_train_per_task",
    )


def _spread(groups: Sequence[Sequence[Example]], seed: int) -> list[Example]:
    """Shuffle each task and interleave the tasks evenly, so that any stretch of the store is a fair sample."""
    keyed = []
    for number, group in enumerate(groups):
        order = np.random.default_rng([seed, number]).permutation(len(group))
        keyed += [((rank + 0.5) / len(group), number, group[i]) for rank, i in enumerate(order)]
    return [example for _, _, example in sorted(keyed, key=lambda item: item[:2])]
