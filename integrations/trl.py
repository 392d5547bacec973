"""`SFTTrainer` of TRL, with a store's teacher in its loss; packing, padding-free batches and LoRA as it has them."""

from __future__ import annotations

import trl

from logitbank.integrations.joining import StoreJoin
from logitbank.integrations.transformers import DistillationMixin

__all__ = ["DistillationSFTTrainer", "StoreJoin"]


class DistillationSFTTrainer(DistillationMixin, trl.SFTTrainer):
    """`trl.SFTTrainer` whose own dataset is joined to a store; see `DistillationMixin`.

    TRL's `entropy` and `mean_token_accuracy` are logged in evaluation alone: they come with its own loss.
    """
