"""How top-K logits become arrays: one file per encoding, registered in `logitbank.registry.ENCODINGS`.

What is exported here is all that an encoding needs.
"""

from logitbank.storage.teacher_store.encodings.base import Arrays, Encoding, Slack, block_log_tails, log_tail_beyond
from logitbank.storage.teacher_store.layout import RANK_BLOCK, ArraySpec, rank_blocks

__all__ = [
    "RANK_BLOCK",
    "ArraySpec",
    "Arrays",
    "Encoding",
    "Slack",
    "block_log_tails",
    "log_tail_beyond",
    "rank_blocks",
]
