"""Which examples a build is about, and in which order a store has them.

They are in a file of this process (see `tasks.spool`); of each, a few numbers are in memory.

Shape letters: N examples, in store order.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import data_settings
from logitbank.configs.schema import Config
from logitbank.configs.training_data import training_examples
from logitbank.tasks import Example
from logitbank.tasks.data import draw_examples
from logitbank.tasks.spool import Spool

Cell = tuple[str, str]
Positions = NDArray[np.int64]
TRAIN = "train"


@dataclass(frozen=True)
class StoreExamples:
    """The examples of a build.

    Attributes:
        order: (N,) where each example that a teacher is asked for is in the file.
        held_out: where those of the validation split are; none for any other split than `train`.
        cells: tasks and languages of those that a teacher is asked for, or of some more.
    """

    order: Positions
    held_out: Positions
    cells: tuple[Cell, ...]
    _spool: Spool

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Example:
        """The example of a number in store order."""
        return self._spool[int(self.order[number])]

    def validation(self) -> Iterator[Example]:
        """Those of the validation split."""
        for position in self.held_out.tolist():
            yield self._spool[position]

    @property
    def digest(self) -> str:
        """Hash of the content of all of them, in store order."""
        return f"{self._spool.digest(self.order)}/{self._spool.digest(self.held_out)}"


@contextlib.contextmanager
def open_examples(config: Config, split: str, present: Sequence[Cell]) -> Iterator[StoreExamples]:
    """Read the examples of a split, and for `train` those of the validation split.

    Of `train` those that students learn from; of any other split those that `evaluate-model` asks for.

    Args:
        config: which tasks and languages, and how many examples.
        split: `train`, `validation` or `test`.
        present: the (task, language) cells that exist.

    Raises:
        TaskError: data that cannot be opened, or no room for them in the temporary directory.
    """
    with contextlib.closing(Spool()) as spool:
        if split == TRAIN:
            groups = [training_examples(config, task, spool) for task in config.tasks]
        else:
            groups = _asked(config, split, present, spool)
        cells = tuple(sorted(spool.cells))
        held_out = _held_out(config, present, spool) if split == TRAIN else _joined([])
        yield StoreExamples(_spread(groups, config.seed), held_out, cells, spool)


def _asked(config: Config, split: str, present: Sequence[Cell], into: Spool) -> list[Positions]:
    """What `evaluate-model` asks of a split, task by task."""
    data = data_settings(config, seed=config.evaluation.sample_seed)
    by_task: dict[str, list[Positions]] = {task: [] for task in config.tasks}
    for task, language in present:
        limit = config.evaluation.max_samples
        by_task[task].append(
            draw_examples(task, split, language, data, into, limit=limit, limited_by="evaluation.max_samples")
        )
    return [_joined(parts) for parts in by_task.values()]


def _held_out(config: Config, present: Sequence[Cell], into: Spool) -> Positions:
    """Examples of the validation split: every requested language of a task has an equal share of the task's limit."""
    languages: dict[str, list[str]] = defaultdict(list)
    for task, language in present:
        languages[task].append(language)
    data = data_settings(config)
    found: list[Positions] = []
    for task, having in languages.items():
        share, rest = divmod(config.data.max_validation_per_task, len(having))
        for position, language in enumerate(having):
            limit = share + (position < rest)
            if limit:
                found.append(
                    draw_examples(
                        task, "validation", language, data, into, limit=limit, limited_by="data.max_validation_per_task"
                    )
                )
    return _joined(found)


def _spread(groups: Sequence[Positions], seed: int) -> Positions:
    """Shuffle each task and interleave the tasks evenly, so that any stretch of the store is a fair sample."""
    places, shuffled = [], []
    for number, group in enumerate(groups):
        shuffled.append(group[np.random.default_rng([seed, number]).permutation(len(group))])
        places.append((np.arange(len(group)) + 0.5) / max(1, len(group)))
    # Stable: of equal places the earlier task's comes first.
    return _joined(shuffled)[np.argsort(np.concatenate(places), kind="stable")]


def _joined(parts: Sequence[Positions]) -> Positions:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
