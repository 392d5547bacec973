"""Prompts on disk, and their order: sorted, with what each has in common with the one before it.

Shape letters: N prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from logitbank.sequences import AnsweredSequence
from logitbank.storage import Column

IN_MEMORY = 1 << 22  # tokens that are sorted at a time
_WINDOW = 64  # tokens of a prompt that are compared at a time
_TOKEN = np.dtype(">i4")  # whose bytes sort as its numbers do


class PromptFile:
    """What comes before the first answer of each sequence, the last token left out, in a temporary file."""

    def __init__(self, sequences: Iterable[AnsweredSequence] = ()) -> None:
        """Take the prompts of sequences."""
        self._ids, self._length, self._read = Column(_TOKEN), Column(np.int32), Column(np.int32)
        for sequence in sequences:
            self.add(sequence)

    def __len__(self) -> int:
        return len(self._length)

    def add(self, sequence: AnsweredSequence) -> None:
        """Keep the prompt of a sequence but for its last token, where the first answer token is predicted."""
        prompt = sequence.prompt_ids[:-1]
        self._ids.extend(prompt)
        self._length.extend([len(prompt)])
        self._read.extend([sequence.spans[-1].start])

    @property
    def read_tokens(self) -> NDArray[np.int32]:
        """(N,) tokens of each sequence, the last answer aside."""
        return self._read.read()

    def in_order(self, in_memory: int = IN_MEMORY) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The prompts in the order of their token ids, the earlier first among equals.

        Prompts that begin alike are parted by the first token that differs, until so few are left that they can be
        sorted in memory.

        Args:
            in_memory: tokens that may be.

        Returns:
            (N,) int64 positions, and (N,) int32 how many tokens each prompt there shares with the one before it.
        """
        length = self._length.read()
        start = np.cumsum(length, dtype=np.int64) - length
        order, common = np.empty(len(length), dtype=np.int64), np.zeros(len(length), dtype=np.int32)
        done = 0
        parts = [(np.arange(len(length)), 0, 0)] if len(length) else []
        while parts:
            members, depth, before = parts.pop()
            if int(length[members].sum()) - depth * len(members) <= in_memory or len(members) == 1:
                keys = [self._ids.read_bytes(start[i] + depth, start[i] + length[i]) for i in members.tolist()]
                ranked = sorted(range(len(keys)), key=keys.__getitem__)
                here = slice(done, done + len(members))
                order[here] = members[ranked]
                common[here] = [
                    before if i == 0 else depth + _common(keys[ranked[i - 1]], keys[j]) for i, j in enumerate(ranked)
                ]
                done += len(members)
                continue
            depth = self._agreed(members, depth, start, length)
            tokens = np.array(
                [
                    np.frombuffer(self._ids.read_bytes(start[i] + depth, start[i] + depth + 1), _TOKEN)[0]
                    if length[i] > depth
                    else -1
                    for i in members.tolist()
                ]
            )
            by_token = np.argsort(tokens, kind="stable")
            cuts = np.flatnonzero(np.diff(tokens[by_token])) + 1
            for number, part in reversed(list(enumerate(np.split(members[by_token], cuts)))):
                parts.append((part, depth, depth if number else before))
        return order, common

    def _agreed(
        self, members: NDArray[np.int64], depth: int, start: NDArray[np.int64], length: NDArray[np.int32]
    ) -> int:
        """How many tokens all of the members share, of which `depth` are known to be shared."""
        while True:
            first = int(start[members[0]]) + depth
            window = self._ids.read_bytes(first, min(first + _WINDOW, int(start[members[0]] + length[members[0]])))
            for i in members.tolist():
                begin = int(start[i]) + depth
                stop = min(begin + len(window) // _TOKEN.itemsize, int(start[i] + length[i]))
                piece = self._ids.read_bytes(begin, stop)
                if piece != window:
                    window = window[: _common(piece, window) * _TOKEN.itemsize]
            depth += len(window) // _TOKEN.itemsize
            if len(window) < _WINDOW * _TOKEN.itemsize:
                return depth

    def close(self) -> None:
        """Give the room back."""
        for column in (self._ids, self._length, self._read):
            column.close()


def _common(first: bytes, second: bytes) -> int:
    """Tokens at the beginning of both."""
    size = min(len(first), len(second))
    if first[:size] == second[:size]:
        return size // _TOKEN.itemsize
    a, b = (np.frombuffer(it[:size], dtype=_TOKEN) for it in (first, second))
    return int((a != b).argmax())
