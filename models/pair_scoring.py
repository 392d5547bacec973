"""Logits of many packed pairs, in batches of similar length.

Shape letters: N pairs, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.errors import MemoryExhaustedError
from logitbank.models.batches import batches_by_length
from logitbank.models.classifier import PairClassifier
from logitbank.models.pair_batch import collate_pairs
from logitbank.preference import CLASSES, PackedPair

logger = logging.getLogger(__name__)


def score_pairs(
    classifier: PairClassifier,
    packed: Sequence[PackedPair],
    *,
    batch_tokens: int,
    progress: Callable[[int], object] = lambda pairs: None,
) -> NDArray[np.float32]:
    """The logits of pairs, (N, C) float32, in the order given.

    The longest batches go first, so that what does not fit in memory fails at once. Where it does not fit, all pairs
    are scored again with half the tokens in a batch: the numbers are a function of the pairs and of that budget, not
    of the place where memory ran out.

    Args:
        classifier: in evaluation mode.
        packed: pairs as its settings say.
        batch_tokens: most tokens in one batch, padding included; a longer pair goes alone.
        progress: told how many pairs are done; less than 0 where they are scored again.

    Raises:
        MemoryExhaustedError: even single pairs do not fit in memory.
    """
    lengths = [len(pair.ids) for pair in packed]
    logits_NC = np.empty((len(packed), len(CLASSES)), dtype=np.float32)
    budget = batch_tokens
    while True:
        done = 0
        try:
            for batch in batches_by_length(lengths, budget):
                logits_NC[batch] = _score([packed[index] for index in batch], classifier)
                done += len(batch)
                progress(len(batch))
        except torch.OutOfMemoryError as error:
            progress(-done)
            if budget <= min(lengths):
                raise MemoryExhaustedError(
                    f"model.name: a single pair of {max(lengths)} tokens does not fit in memory; lower "
                    "data.max_student_tokens, or load the model in 4 or 8 bits"
                ) from error
            budget = min(budget, max(lengths) * len(lengths)) // 2
            logger.warning("out of memory; continuing with batches of %d tokens", budget)
        else:
            return logits_NC


@torch.inference_mode()
def _score(packed: Sequence[PackedPair], classifier: PairClassifier) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = classifier(collate_pairs(packed).to(classifier.device)).cpu().numpy()
    return logits
