"""What an encoding is: one way to store top-K logits as arrays, with all that depends on the way.

Adding one is a file with an object of this kind and a line in `logitbank.registry.ENCODINGS`.

Shape letters: T answer tokens, K ranks, B blocks of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitbank.storage.teacher_store.layout import ArraySpec, rank_blocks
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.vocabulary import Vocabulary

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Slack:
    """By how many nats decoded numbers that belong together may disagree: `inspect-cache --verify` allows as much.

    Attributes:
        logits: two logits of one row.
        scalars: logsumexp, entropy and gold logit.
        tails: the log-probability of what is not stored.
        log_mass: of what could be drawn.
        relative: share of the largest logit, added to all of them.
    """

    logits: float = 0.0
    scalars: float = 0.0
    tails: float = 1e-2
    log_mass: float = 1e-3
    relative: float = 0.0

    @property
    def lossless(self) -> bool:
        """Whether logits come back as they were."""
        return not (self.logits or self.scalars or self.relative)


class Encoding(Protocol):
    """One way to store teacher rows as arrays.

    Attributes:
        name: as `store.encoding` spells it.
        slack: see `Slack`.
        log_mass_dtype: NumPy dtype name of what `encode_log_mass` returns.
    """

    name: str
    slack: Slack
    log_mass_dtype: str

    def arrays(self, top_k: int) -> list[ArraySpec]:
        """The arrays that hold K = `top_k` ranks."""

    def encode(self, rows: TeacherRows, vocabulary: Vocabulary) -> dict[str, NDArray[Any]]:
        """Arrays of T rows. StoreError if a value cannot be held within the bounds."""

    def decode(self, arrays: Arrays, top_k: int, vocabulary: Vocabulary) -> TeacherRows:
        """Rows with the first `top_k` ranks; arrays may hold more, in whole blocks of ranks."""

    def encode_log_mass(self, log_mass: NDArray[np.float32]) -> NDArray[Any]:
        """(T,) log-probabilities, 0 or less, as a store with draws keeps them."""

    def decode_log_mass(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """(T,) log-probabilities that `encode_log_mass` stored."""

    def bytes_per_token(self, top_k: int) -> float:
        """Expected bytes of one answer token under one view, draws left out."""


def block_log_tails(rows: TeacherRows) -> NDArray[np.float64]:
    """The (T, B) log-probability of all tokens beyond each block of ranks."""
    mass = np.exp(rows.logits - rows.logsumexp[:, None].astype(np.float64))
    starts = [block.start for block in rank_blocks(mass.shape[1])]
    later = np.cumsum(np.add.reduceat(mass, starts, axis=1)[:, :0:-1], axis=1)[:, ::-1]
    tail = np.exp(rows.log_tail.astype(np.float64))[:, None]
    tails: NDArray[np.float64] = np.log(np.minimum(np.concatenate([later + tail, tail], axis=1), 1.0))
    return tails


def log_tail_beyond(
    last_block: NDArray[Any], rest: NDArray[np.float32], logsumexp: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The (T,) log-probability of all ranks that are not asked for.

    Args:
        last_block: (T,) log-probability of all tokens beyond the last block that was read.
        rest: (T, R) logits of that block that are not asked for.
        logsumexp: (T,).
    """
    if rest.shape[1] == 0:
        return last_block.astype(np.float32)
    mass = np.exp(last_block.astype(np.float64)) + np.exp(rest.astype(np.float64) - logsumexp[:, None]).sum(axis=1)
    log_tail: NDArray[np.float32] = np.log(np.minimum(mass, 1.0)).astype(np.float32)
    return log_tail
