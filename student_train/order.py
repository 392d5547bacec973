"""Which examples form an optimizer step.

The order is a pure function of (seed, position), so a step's examples are the same at any world size,
accumulation, number of workers, and after a resume.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config
from logitbank.storage import ExampleTable, TeacherStore

SHARDS_PER_WINDOW = 8
PART_OF_CONVERSATION = re.compile(r"#\d+$")  # ends the id of an example that holds one turn of a conversation
PART_OF_ANSWERS = re.compile(r"(#\d+)?(~\d+)?$")  # of one that holds one of several answers that a model wrote to it

Positions = NDArray[np.int64]  # in a store's example table


class ExampleOrder:
    """The endless stream of training examples: tasks in turn, each through its own permutations.

    Position p belongs to task p mod (number of tasks); a task starts a fresh permutation of its examples
    whenever one is used up. A permutation takes the store's shards in a random order that all tasks
    share, `SHARDS_PER_WINDOW` at a time, and shuffles the task's examples within those: the store's
    order is random already, and what is read together is stored together.
    """

    def __init__(self, tasks: Mapping[str, Positions], shard_of: NDArray[np.integer], seed: int) -> None:
        """Args: `tasks` maps names to positions in the example table, `shard_of` is the shard of each."""
        self.tasks = tuple(tasks)
        self.examples = tuple(tasks.values())
        self._shard_of = shard_of
        self._seed = seed
        self._permutations: dict[tuple[int, int], Positions] = {}

    def counts(self) -> dict[str, int]:
        """Examples of each task."""
        return {task: len(examples) for task, examples in zip(self.tasks, self.examples, strict=True)}

    def epochs_in(self, steps: int, batch_size: int) -> dict[str, float]:
        """How often the steps see each task's examples: tasks take turns, so smaller ones more often."""
        turns = steps * batch_size / len(self.tasks)
        return {task: turns / count for task, count in self.counts().items()}

    def example(self, position: int) -> int:
        """Position in the example table of the example at a position of the stream."""
        turn, task = divmod(position, len(self.tasks))
        epoch, index = divmod(turn, len(self.examples[task]))
        return int(self._permutation(task, epoch)[index])

    def step(self, step: int, batch_size: int) -> list[int]:
        """The examples of one optimizer step, counted from 0."""
        return [self.example(position) for position in range(step * batch_size, (step + 1) * batch_size)]

    def _permutation(self, task: int, epoch: int) -> Positions:
        if (task, epoch) not in self._permutations:
            self._permutations.pop((task, epoch - 2), None)
            self._permutations[task, epoch] = self._draw_permutation(task, epoch)
        return self._permutations[task, epoch]

    def _draw_permutation(self, task: int, epoch: int) -> Positions:
        examples = self.examples[task]
        shards = int(self._shard_of.max()) + 1
        turn_of_shard = np.random.default_rng([self._seed, epoch]).permutation(shards)
        window = turn_of_shard[self._shard_of[examples]] // SHARDS_PER_WINDOW
        # keyed by the task's name: its order does not change when other tasks join or leave
        key = [self._seed, epoch, zlib.crc32(self.tasks[task].encode())]
        return examples[np.lexsort((np.random.default_rng(key).random(len(examples)), window))]


def example_order(store: TeacherStore, config: Config) -> ExampleOrder:
    """The order of a run: the configured tasks, of each at most `data.max_train_per_task` conversations."""
    return order_of(store, config.tasks, config.seed, config.data.max_train_per_task)


def order_of(store: TeacherStore, tasks: Sequence[str], seed: int, most: int | None = None) -> ExampleOrder:
    """The order of some tasks' examples, in which tasks take turns.

    Args:
        store: has the examples.
        tasks: names; one that the store lacks has no examples.
        seed: of the order.
        most: conversations of each task, the first ones; None for all.
    """
    table = store.examples
    conversation = conversations(table, sampled=store.info.answers is not None)
    per_task = {}
    for task in tasks:
        number = store.info.tasks.index(task) if task in store.info.tasks else -1
        examples = np.flatnonzero(np.asarray(table.task) == number)
        first = np.unique(conversation[examples])[:most]
        per_task[task] = examples[np.isin(conversation[examples], first)]
    shard_of = np.asarray(table.answer_start) // store.info.shard_tokens
    return ExampleOrder(per_task, shard_of, seed)


def conversations(table: ExampleTable, *, sampled: bool = False) -> Positions:
    """Which conversation each example is of, (N,), numbered as they first appear.

    An example is a conversation of its own, one of the parts that a conversation was split into by turns, or one of
    the answers that a model wrote to it.

    Args:
        table: of a store.
        sampled: whether a model wrote its answers.
    """
    part = PART_OF_ANSWERS if sampled else PART_OF_CONVERSATION
    names = (part.sub("", name, count=1).encode() for name in table.example_id)
    hashes = (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names)
    _, first, group = np.unique(np.fromiter(hashes, np.uint64, len(table)), return_index=True, return_inverse=True)
    numbers: Positions = np.argsort(np.argsort(first))[group]
    return numbers


def conversation_tokens(table: ExampleTable, *, sampled: bool = False) -> Positions:
    """Answer tokens of the conversation that each example is of, all its parts together, (N,); see `conversations`."""
    conversation = conversations(table, sampled=sampled)
    tokens = np.zeros(len(table), dtype=np.int64)
    np.add.at(tokens, conversation, table.answer_length)
    return tokens[conversation]
