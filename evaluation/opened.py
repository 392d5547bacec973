"""What is evaluated on comparisons: a model or checkpoint, how it is asked, and the model itself while still closed.

Shape letters: N comparisons, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs import Config, ConfigError
from logitbank.evaluation.calibration import Protocol
from logitbank.evaluation.checkpoints import Checkpoint, check_template
from logitbank.evaluation.comparisons import Comparisons
from logitbank.evaluation.identity import Encoding, Model, examine, open_tokenizer
from logitbank.evaluation.pair_scores import (
    LETTERS_HEAD,
    PairScores,
    Scorer,
    ScorerOpener,
    as_read,
    packers,
    score_comparisons,
)
from logitbank.evaluation.questions import shows_demonstrations
from logitbank.models.workers import Worker
from logitbank.preference import TASK
from logitbank.progress import Progress
from logitbank.tasks.preference import PairPacker
from logitbank.tasks.prompts import PromptEncoder, tokenizer_hash


@dataclass(frozen=True)
class Classification:
    """What to evaluate and where its rows go.

    Attributes:
        config: the whole configuration.
        condition: name under which the rows appear.
        checkpoint: the trained weights, or None for the model itself.
        results: directory of the result rows.
        store: URL of the label store that has the fold of `evaluation.split=held_out`, or those to calibrate on.
        calibrate: whether to fit a temperature first: on `store`, or without one on validation.
        raw: whether a temperature that was fitted is left out.
        worker: the first one does it all.
    """

    config: Config
    condition: str
    checkpoint: Checkpoint | None
    results: Path
    store: str | None = None
    calibrate: bool = False
    raw: bool = False
    worker: Worker | None = None


@dataclass(frozen=True)
class PlainText:
    """How classifiers are asked: without a chat template, by a tokenizer of a language model or of an encoder."""

    tokenizer: Any
    template_hash: None = None

    @property
    def tokenizer_hash(self) -> str:
        """Of all that decides which ids a text gets."""
        return tokenizer_hash(self.tokenizer)


@dataclass(frozen=True)
class Opened:
    """What is evaluated, the model itself still closed.

    Attributes:
        job: the evaluation, its configuration as the model reads it.
        model: its weights and how it is asked.
        tokenizer: of the model.
        packers: one for each length at which it reads.
        scorer: opens the model.
    """

    job: Classification
    model: Model
    tokenizer: Any
    packers: Sequence[PairPacker]
    scorer: Callable[[], Scorer]

    @property
    def protocol(self) -> Protocol:
        """What a temperature holds for."""
        evaluation = self.job.config.evaluation
        return Protocol(
            self.model.weights, tuple(evaluation.tta_tokens), evaluation.swap_average, evaluation.load_in_8bit
        )

    def score(self, what: str, comparisons: Comparisons) -> PairScores:
        """Probabilities of comparisons, under a progress bar."""
        pairs, both = comparisons.pairs, self.job.config.evaluation.swap_average
        readings = len(self.packers) * (2 if both else 1)
        with Progress(what, len(pairs) * readings, "readings") as progress:
            return score_comparisons(self.scorer(), self.packers, pairs, progress.advance, swap_average=both)


def open_classification(job: Classification, opener: ScorerOpener) -> Opened:
    """Everything about an evaluation that needs no weights.

    Raises:
        ConfigError: a condition, head, length or template that does not fit.
    """
    if shows_demonstrations(job.condition):
        raise ConfigError(
            f"--condition: {job.condition} shows demonstrations, but {TASK} has none; use base, or a name of your own"
        )
    if (job.calibrate or job.raw) and job.checkpoint is None:
        option = "--calibrate" if job.calibrate else "--no-calibration"
        raise ConfigError(f"{option}: a temperature is stored with a checkpoint; add --checkpoint DIR")
    config = as_read(job.config, job.checkpoint)
    tokenizer = open_tokenizer(job.config, job.checkpoint)
    encoding: Encoding = PlainText(tokenizer)
    if config.model.head == LETTERS_HEAD:
        encoding = encoder = PromptEncoder(tokenizer)
        check_template(job.checkpoint, encoder.template_hash)
    return Opened(
        dataclasses.replace(job, config=config),
        examine(job.config, job.checkpoint, encoding),
        tokenizer,
        packers(config, job.checkpoint, tokenizer),
        lambda: opener(config, job.checkpoint),
    )
