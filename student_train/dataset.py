"""A teacher store as a PyTorch dataset, for training loops of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from logitbank.errors import ConfigError, counted
from logitbank.storage import TeacherStore, open_store
from logitbank.student_train.order import order_of
from logitbank.student_train.taught import RowsInfo, TaughtExample


class TeacherDataset(Dataset[TaughtExample]):
    """The training examples of a store, each with its teacher rows.

    Item i is a `TaughtExample`; a `DataLoader` reads all items of a batch at once. `sampler()` gives their numbers in
    an order that reads few shards at a time, the one of `train-student`. Workers open the store for themselves.

    Attributes:
        url: of the store.
        view: whose rows; None for none.
        top_k: ranks of each row.
        shuffle_seed: of the sampler's order; None for the store's own.
        positions: (N,) the examples' positions in the store.
    """

    def __init__(
        self,
        store: TeacherStore | str,
        *,
        view: str | None,
        top_k: int | None = None,
        tasks: Sequence[str] | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        """Check that the store has what is asked for; reads no teacher row.

        Args:
            store: an open store, or its URL.
            view: whose rows the examples get; None for examples alone.
            top_k: how many of the stored ranks; None for all.
            tasks: whose examples; None for all of the store's.
            shuffle_seed: of the sampler's order, as `seed` of `train-student`; None takes the store's own order.

        Raises:
            StoreError: no such view, one that is not finished or has examples of its own, or too many ranks.
            ConfigError: a task of which the store has no examples, or some of the ranks of a store with draws.
        """
        opened = open_store(store) if isinstance(store, str) else store
        self.url = opened.url
        self.view = view
        self.shuffle_seed = shuffle_seed
        self.top_k = opened.info.top_k if top_k is None else top_k
        if view is not None:
            opened.require_view(view)
            opened.require_examples(view)
            opened.check_top_k(self.top_k)
            if opened.info.draws and self.top_k != opened.info.top_k:
                raise ConfigError(
                    f"top_k: expected None because the draws in the store at {opened.url} require all of its "
                    f"{opened.info.top_k} ranks, got {self.top_k}"
                )
        self._store, self._process = opened, os.getpid()
        self._info = RowsInfo.of(opened, view)
        present = [name for number, name in enumerate(opened.info.tasks) if (opened.examples.task == number).any()]
        for task in tasks or ():
            if task not in present:
                have = ", ".join(present)
                raise ConfigError(f"tasks: the store at {opened.url} has no examples of {task} (it has {have})")
        order = order_of(opened, present if tasks is None else tasks, shuffle_seed or 0)
        self.positions = np.sort(np.concatenate(order.examples))
        self._example_at: Callable[[int], int] | None = None if shuffle_seed is None else order.example

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> TaughtExample:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[TaughtExample]:
        """Several examples, their rows read together; `DataLoader` calls this."""
        store = self._opened()
        for item in items:
            if not 0 <= item < len(self):
                raise IndexError(f"item {item}: expected 0 to {len(self) - 1}")
        chosen = self.positions[list(items)]
        rows = store.read(chosen, self.view, self.top_k) if self.view is not None else None
        examples, start = [], 0
        for position in chosen.tolist():
            record = store.examples[position]
            stop = start + record.sequence.answer_length
            own = None if rows is None else rows.take(slice(start, stop))
            examples.append(TaughtExample(record.example_id, record.sequence, own, self._info))
            start = stop
        return examples

    def sampler(self, length: int | None = None) -> ExampleSampler:
        """The order in which to take the items.

        Args:
            length: how many items an epoch has; None for as many as there are. Tasks
                alternate, so with several tasks the smaller ones start again within an epoch of that length.
        """
        return ExampleSampler(self._item_at, len(self) if length is None else length)

    def _item_at(self, position: int) -> int:
        """The item at a position of the endless order."""
        if self._example_at is None:
            return position % len(self)
        return int(np.searchsorted(self.positions, self._example_at(position)))

    def _opened(self) -> TeacherStore:
        """The store, opened anew in a process that inherited it: connections do not survive a fork."""
        if self._process != os.getpid():
            self._store, self._process = open_store(self.url), os.getpid()
        return self._store


class ExampleSampler(Sampler[int]):
    """Items of a `TeacherDataset`, a stretch of its endless order in each epoch."""

    def __init__(self, item_at: Callable[[int], int], length: int) -> None:
        if length < 1:
            raise ConfigError(f"length: expected at least {counted(1, 'item')}, got {length}")
        self._item_at = item_at
        self._length = length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the stretch of an epoch, counted from 0; trainers call this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        start = self._epoch * self._length
        return (self._item_at(position) for position in range(start, start + self._length))
