"""Packed comparisons in memory, and the micro-batches that are made of them.

Shapes: N rows, B rows of a micro-batch, L padded length, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.models.pair_batch import PairBatch, collate_pairs
from logitbank.preference import SWAPPED, PackedPair
from logitbank.sequences import Span
from logitbank.student_train.classifier.order import Visit


class PackedPairs(Sequence[PackedPair]):
    """Many packed pairs, 4 bytes a token: 88,000 of 1,024 tokens are 360 MB.

    They are tokenised once, before the first step, and stay in memory: a step then takes no time for its data, and
    swapped answers are the same tokens in another order.
    """

    def __init__(self, packed: Iterable[PackedPair]) -> None:
        """Take over the tokens of pairs, in their order."""
        ids, about = [], []
        for pair in packed:
            ids.append(pair.ids)
            about.append((len(pair.ids), *pair.response_a, *pair.response_b, pair.cut))
        self._ids = np.concatenate(ids) if ids else np.empty(0, np.int32)
        self._about = np.array(about, dtype=np.int32).reshape(-1, 6)
        self._starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(N,) tokens of each."""
        return self._about[:, 0]

    @property
    def cut(self) -> int:
        """How many of them were cut."""
        return int((self._about[:, 5] > 0).sum())

    def __len__(self) -> int:
        return len(self._about)

    def __getitem__(self, row: int) -> PackedPair:  # type: ignore[override]  # no slices
        length, a_start, a_length, b_start, b_length, cut = self._about[row].tolist()
        start = int(self._starts[row])
        ids = self._ids[start : start + length]
        return PackedPair(ids, Span(a_start, a_length), Span(b_start, b_length), cut)


@dataclass(frozen=True)
class TrainingRows:
    """Everything that training reads of its rows.

    Attributes:
        packed: N pairs.
        target_NC: float32 probabilities.
        teacher_NC: float32, the teachers' mean probabilities at the configured temperature; 0 if there are none.
        taught_N: bool, which rows teachers scored.
        external_N: bool, which rows are from external files.
        prompt_key_N: uint64.
    """

    packed: PackedPairs
    target_NC: NDArray[np.float32]
    teacher_NC: NDArray[np.float32]
    taught_N: NDArray[np.bool_]
    external_N: NDArray[np.bool_]
    prompt_key_N: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.packed)

    def batch(self, visits: Sequence[Visit]) -> PairRows:
        """The micro-batch of some rows; labels and the teachers' words change places with the answers."""
        rows = [visit.row for visit in visits]
        columns = np.array([SWAPPED if visit.swapped else range(len(SWAPPED)) for visit in visits])
        packed = [self.packed[row].swapped() if swapped else self.packed[row] for row, swapped in visits]
        return PairRows(
            pairs=collate_pairs(packed),
            target_BC=torch.from_numpy(np.take_along_axis(self.target_NC[rows], columns, axis=1)),
            teacher_BC=torch.from_numpy(np.take_along_axis(self.teacher_NC[rows], columns, axis=1)),
            taught_B=torch.from_numpy(self.taught_N[rows]),
            real_tokens=int(self.packed.lengths[rows].sum()),
        )


@dataclass(frozen=True)
class PairRows:
    """One micro-batch on one rank.

    Attributes:
        pairs: what the student reads.
        target_BC: float32 probabilities.
        teacher_BC: float32 probabilities; see `TrainingRows`.
        taught_B: bool.
        real_tokens: tokens that are not padding.
    """

    pairs: PairBatch
    target_BC: torch.Tensor
    teacher_BC: torch.Tensor
    taught_B: torch.Tensor
    real_tokens: int

    def to(self, device: torch.device) -> PairRows:
        """The micro-batch on a device."""
        return PairRows(
            self.pairs.to(device),
            self.target_BC.to(device),
            self.teacher_BC.to(device),
            self.taught_B.to(device),
            self.real_tokens,
        )
