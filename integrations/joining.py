"""Rows of somebody's own dataset, joined to the examples of a store: by example id, or by their tokens.

Shapes: B rows, L padded length, T answer tokens of the batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.errors import ConfigError
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherStore, open_store
from logitbank.student_train.collator import NO_LABEL, teacher_tensors
from logitbank.student_train.taught import DistillationBatch, RowsInfo

TAIL = 8  # tokens that a template may write after the last answer: a line break after Qwen3's end of turn
Collate = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]


class StoreJoin:
    """Finds the teacher rows for rows that somebody else tokenised.

    The store says which tokens are learned: labels outside its answers are dropped. Up to 8 tokens
    after a row's last answer are not a difference, because nothing is predicted there. Any other is refused.

    Attributes:
        view: whose rows.
        by: `tokens`, or `example_id`: the column that has the store's names.
    """

    def __init__(
        self,
        store: TeacherStore | str,
        *,
        view: str,
        by: Literal["tokens", "example_id"] = "tokens",
        top_k: int | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Check that the store has the view; the dataset is checked when a trainer gets it.

        Args:
            store: an open store, or its URL.
            view: whose rows to take.
            by: how rows find their examples. Packing drops all columns but tokens, so packed rows go by `tokens`.
            top_k: how many of the stored ranks; None for all.
            tokenizer: shows tokens as text in messages; None shows ids.

        Raises:
            StoreError: no such view, one that is not finished or has examples of its own, or too many ranks.
            ConfigError: another way to join.
        """
        if by not in ("tokens", "example_id"):
            raise ConfigError(f"by: expected tokens or example_id, got {by!r}")
        self._store = open_store(store) if isinstance(store, str) else store
        self._process = os.getpid()
        self.view = view
        self.by = by
        self._store.require_view(view)
        self._store.require_examples(view)
        self._top_k = self._store.check_top_k(top_k)
        self._tokenizer = tokenizer
        self._info = RowsInfo.of(self._store, view)

    def check(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Find every row's examples, and return how many there are.

        Raises:
            ConfigError: a row that is not an example of the store, with its first difference.
        """
        return sum(len(self._examples_of(row, number)) for number, row in enumerate(rows))

    def collator(self, own: Collate) -> Collate:
        """The collator that adds labels and teacher to what another makes.

        Args:
            own: a trainer's collator; it pads on the right, or puts all rows into one.
        """
        return _JoinedCollator(self, own)

    def attach(self, rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]) -> DistillationBatch:
        """A batch with the store's labels and the teacher's tensors.

        Args:
            rows: with `input_ids`, and `seq_lengths` where several sequences are packed into a row.
            batch: what a collator made of them: `input_ids`, (B, L) padded on the right or (1, L) without padding.

        Raises:
            ConfigError: a row that is not an example of the store, or tokens that are elsewhere in the batch.
        """
        input_ids: torch.Tensor = batch["input_ids"]
        found: list[int] = []
        starts: list[int] = []
        flat = 0
        for number, row in enumerate(rows):
            offset = flat if len(input_ids) == 1 else number * input_ids.shape[1]
            for position, within in self._examples_of(row, number):
                found.append(position)
                starts.append(offset + within)
            flat += len(row["input_ids"])
        store = self._opened()
        sequences = [store.examples.sequence(position) for position in found]
        labels = torch.full_like(input_ids, NO_LABEL)
        for start, sequence in zip(starts, sequences, strict=True):
            at = torch.from_numpy(start + sequence.answer_positions)
            gold = torch.from_numpy(sequence.answer_ids).to(input_ids.dtype)
            if int(at[-1]) >= input_ids.numel() or not torch.equal(input_ids.view(-1)[at], gold):
                raise ConfigError(
                    "data_collator: expected rows padded on the right, or packed one after another into one row; got "
                    f"a batch of {tuple(input_ids.shape)} with its tokens elsewhere"
                )
            labels.view(-1)[at] = gold.to(labels.dtype)
        teacher = teacher_tensors(
            sequences,
            np.asarray(starts),
            [store.read(found, self.view, self._top_k)],
            self._info,
            (input_ids.shape[0], input_ids.shape[1]),
        )
        rest = {name: value for name, value in batch.items() if name != "shift_labels"}
        return DistillationBatch({**rest, "labels": labels, "teacher": teacher})

    def _examples_of(self, row: Mapping[str, Any], number: int) -> list[tuple[int, int]]:
        """The examples in a row: position in the store, and where each begins in the row."""
        ids = np.asarray(row["input_ids"], dtype=np.int32)
        if self.by == "example_id":
            return [(self._by_name(row, ids, number), 0)]
        lengths = row.get("seq_lengths") or [len(ids)]
        edges = np.cumsum([0, *lengths])
        return [(self._by_tokens(ids[start:stop], number), int(start)) for start, stop in pairwise(edges)]

    def _by_name(self, row: Mapping[str, Any], ids: NDArray[np.int32], number: int) -> int:
        if "example_id" not in row:
            raise ConfigError(
                f"row {number}: expected a column example_id, got {', '.join(row)}; add it, or join by='tokens' "
                "(required for packed rows)"
            )
        name = row["example_id"]
        position = self._position_of.get(name)
        if position is None:
            raise ConfigError(f"row {number}: the store at {self._store.url} has no example {name!r}")
        sequence = self._opened().examples.sequence(position)
        if not _same(ids, sequence):
            raise ConfigError(f"row {number} (example_id {name}): {self._difference(ids, sequence.ids)}")
        return position

    def _by_tokens(self, ids: NDArray[np.int32], number: int) -> int:
        """The position of the example with these tokens, a few at the end aside."""
        for stop in range(len(ids), max(0, len(ids) - TAIL - 1), -1):
            digest = _digest(ids[:stop])
            at = int(np.searchsorted(self._digests, digest))
            if at < len(self._digests) and self._digests[at] == digest:
                position = int(self._order[at])
                if np.array_equal(self._opened().examples.sequence(position).ids, ids[:stop]):
                    return position
        raise ConfigError(
            f"row {number}: no example in the store at {self._store.url} has these tokens; {self._near(ids)}"
        )

    @cached_property
    def _position_of(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self._opened().examples.example_id)}

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        table = self._opened().examples
        digests = np.array([_digest(table.sequence(i).ids) for i in range(len(table))], dtype=np.uint64)
        order = np.argsort(digests, kind="stable")
        return digests[order], order

    @property
    def _digests(self) -> NDArray[np.uint64]:
        """(N,) of all examples' tokens, ascending."""
        return self._sorted[0]

    @property
    def _order(self) -> NDArray[np.int64]:
        """(N,) the examples' positions, by digest."""
        return self._sorted[1]

    def _near(self, ids: NDArray[np.int32]) -> str:
        """The example that shares most tokens with a row, and where they part."""
        table = self._opened().examples
        best = max(range(len(table)), key=lambda position: _common(ids, table.sequence(position).ids))
        return f"the nearest is {table.example_id[best]}: {self._difference(ids, table.sequence(best).ids)}"

    def _difference(self, row: NDArray[np.int32], stored: NDArray[np.int32]) -> str:
        """Where two sequences part, in words."""
        at = _common(row, stored)
        return f"token {at} differs first: the row has {self._shown(row, at)}, the store {self._shown(stored, at)}"

    def _shown(self, ids: NDArray[np.int32], at: int) -> str:
        if at >= len(ids):
            return f"ended ({len(ids)} tokens)"
        token = int(ids[at])
        return f"{token}" if self._tokenizer is None else f"{token} ({self._tokenizer.decode([token])!r})"

    def _opened(self) -> TeacherStore:
        """The store, opened anew in a process that inherited it: connections do not survive a fork."""
        if self._process != os.getpid():
            self._store, self._process = open_store(self._store.url), os.getpid()
        return self._store


class _JoinedCollator:
    """A collator of a trainer's own with labels and teacher added; a class, so that workers can be sent one."""

    def __init__(self, join: StoreJoin, own: Collate) -> None:
        self._join = join
        self._own = own

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> DistillationBatch:
        plain = [{name: value for name, value in row.items() if name != "example_id"} for row in rows]
        return self._join.attach(rows, self._own(plain))


def _digest(ids: NDArray[np.int32]) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=8).digest(), "<u8")[0]


def _same(ids: NDArray[np.int32], sequence: AnsweredSequence) -> bool:
    """Whether a row is the sequence, with no more than `TAIL` tokens after it."""
    return 0 <= len(ids) - len(sequence) <= TAIL and np.array_equal(ids[: len(sequence)], sequence.ids)


def _common(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length
