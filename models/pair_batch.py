"""Packed pairs as the tensors that a classifier reads.

Shape letters: B pairs, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from logitbank.preference import PackedPair


@dataclass(frozen=True)
class PairBatch:
    """Pairs, padded on the right; where things are is recorded here, never found by looking for a padding id.

    Attributes:
        input_ids_BL: int64.
        attention_mask_BL: int64, 1 on real tokens.
        last_B: int64, position of each pair's last token.
        answer_a_BL: bool, the tokens of the first answer.
        answer_b_BL: bool, the tokens of the second answer.
    """

    input_ids_BL: torch.Tensor
    attention_mask_BL: torch.Tensor
    last_B: torch.Tensor
    answer_a_BL: torch.Tensor
    answer_b_BL: torch.Tensor

    def __len__(self) -> int:
        return len(self.last_B)

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.last_B + 1).sum())

    def to(self, device: torch.device | str) -> PairBatch:
        """The batch on a device; copies from pinned memory overlap with computation."""
        return PairBatch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})

    def pin_memory(self) -> PairBatch:
        """Called by `DataLoader(pin_memory=True)`."""
        return PairBatch(**{name: tensor.pin_memory() for name, tensor in vars(self).items()})


def collate_pairs(packed: Sequence[PackedPair], pad_id: int = 0) -> PairBatch:
    """Pad pairs on the right to the longest of them.

    Args:
        packed: at least one, none without tokens.
        pad_id: any id of the model; no real token attends to it, nor is it looked for.
    """
    lengths = [len(pair.ids) for pair in packed]
    shape = (len(packed), max(lengths))
    batch = PairBatch(
        input_ids_BL=torch.full(shape, pad_id),
        attention_mask_BL=torch.zeros(shape, dtype=torch.int64),
        last_B=torch.tensor(lengths) - 1,
        answer_a_BL=torch.zeros(shape, dtype=torch.bool),
        answer_b_BL=torch.zeros(shape, dtype=torch.bool),
    )
    for row, pair in enumerate(packed):
        batch.input_ids_BL[row, : lengths[row]] = torch.from_numpy(pair.ids)
        batch.attention_mask_BL[row, : lengths[row]] = 1
        batch.answer_a_BL[row, pair.response_a.start : pair.response_a.stop] = True
        batch.answer_b_BL[row, pair.response_b.start : pair.response_b.stop] = True
    return batch
