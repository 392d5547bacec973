"""What quantising changed: class probabilities before and after, on rows of a label store.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from logitbank.configs.schema import Config, ConfigError, ModelConfig
from logitbank.errors import counted
from logitbank.models.classifier import open_classifier
from logitbank.models.devices import default_device
from logitbank.models.huggingface import load_tokenizer
from logitbank.models.pair_head import HeadSettings
from logitbank.models.pair_scoring import score_pairs
from logitbank.preference import TASK, PackedPair, SeenPrompts
from logitbank.progress import Progress
from logitbank.storage import LabelStore
from logitbank.tasks.preference import PairPacker

COMPARED = 256  # rows at most that are compared
COMPARED_SHARE = 4  # at most one row in so many is kept from calibration for that


@dataclass(frozen=True)
class Comparison:
    """How far a quantised model's probabilities are from those before.

    Attributes:
        rows: N.
        kl: mean of KL(before ‖ after), in nats.
        largest_kl: the largest of them.
        same_first_choice: share of rows whose likeliest class stayed.
    """

    rows: int
    kl: float
    largest_kl: float
    same_first_choice: float


def chosen_rows(
    store: LabelStore,
    head: HeadSettings,
    tokenizer_of: Path,
    samples: int | None,
    seen: SeenPrompts | None,
) -> tuple[list[PackedPair], list[PackedPair]]:
    """Rows of a label store that calibrate, and others that compare, packed as the model was trained.

    They are drawn from the rows that the model has learned from, where that is known, those from elsewhere included: a
    model that left a fold out has still not seen it when it is quantised.

    Args:
        store: rows in any number.
        head: how they are packed.
        tokenizer_of: directory of the model.
        samples: most rows that calibrate; None if none do.
        seen: the prompts that the model learned from.

    Raises:
        ConfigError: a store without such rows.
    """
    tables = (store.train, store.external)
    places = [(table, row) for table in tables for row in range(len(table))]
    if seen is not None:
        keys = np.concatenate([table.prompt_key for table in tables])
        places = [places[index] for index in np.flatnonzero(np.isin(keys, seen.trained))]
    if len(places) < 2:
        raise ConfigError(
            f"--store: {store.url} has {counted(len(places), 'row')} that the model was trained on, but quantisation "
            "needs some; give the store that it was trained from"
        )
    order = np.random.default_rng(0).permutation(len(places))
    compared = min(COMPARED, len(order) if samples is None else max(1, len(order) // COMPARED_SHARE))
    tokenizer = load_tokenizer(ModelConfig(name=str(tokenizer_of)))
    packer = PairPacker(tokenizer, max_tokens=head.max_tokens, keep_turns=head.keep_turns, head=head.head)

    def packed(indices: NDArray[np.int64]) -> list[PackedPair]:
        pairs = (table.pair(row) for table, row in (places[index] for index in indices))
        return list(packer.pack_all(pairs))

    return packed(order[compared:][: samples or 0]), packed(order[:compared])


def compare(before: Path, after: Path, packed: Sequence[PackedPair]) -> Comparison:
    """Score rows with a model and with its quantised self, each opened as `evaluate-model` does.

    Args:
        before: directory of the model.
        after: directory of the quantised one.
        packed: rows, at least one.
    """
    logs = [log_softmax(_logits(directory, packed).astype(np.float64), axis=1) for directory in (before, after)]
    kl_N = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    same_N = logs[0].argmax(axis=1) == logs[1].argmax(axis=1)
    return Comparison(len(packed), float(kl_N.mean()), float(kl_N.max()), float(same_N.mean()))


def _logits(directory: Path, packed: Sequence[PackedPair]) -> NDArray[np.float32]:
    """(N, C) float32."""
    config = Config(tasks=[TASK], model=ModelConfig(name=str(directory)))
    classifier = open_classifier(config, device=default_device(), checkpoint=directory)
    with Progress("comparing", len(packed), "rows") as progress:
        return score_pairs(classifier, packed, batch_tokens=config.evaluation.batch_tokens, progress=progress.advance)
