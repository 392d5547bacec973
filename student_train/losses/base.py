"""What a loss compares, and what a loss is.

Shapes: T answer tokens, K teacher logits per token, C of those and drawn tokens together, V rows of the `lm_head`.
Everything is in nats and float32 (float64 where the logits are).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from logitbank.configs.schema import DistillationConfig
from logitbank.registry import LOSSES


class StudentLogits(NamedTuple):
    """What every loss needs of the student's logits, at the answer positions alone.

    Attributes:
        logsumexp_T: over all V rows.
        gold_T: logit of the gold answer token.
        top_TK: logits at the teacher's top-K ids, then at the drawn ones if any; K is 0 without a teacher.
        argmax_T: id of the largest logit, or empty where it was not asked for.
        rest_T: logsumexp over the V − K other rows, −inf if there is none; or empty where it was not asked for.
    """

    logsumexp_T: torch.Tensor
    gold_T: torch.Tensor
    top_TK: torch.Tensor
    argmax_T: torch.Tensor
    rest_T: torch.Tensor


@dataclass(frozen=True)
class TeacherLogits:
    """What the store says about the same answer tokens; scalars (T,) in nats.

    `log_tail_T` is the log-probability of all tokens but the K, where the store has it: one minus the K
    probabilities would be noise where rounded values say little about so small a rest. `weight_TC` is there
    for a store with draws alone: the probability that each of the C tokens whose student logits are read, the
    K ranks and the drawn ones, stands for; its mean over draws is the teacher's distribution.
    """

    logits_TK: torch.Tensor
    logsumexp_T: torch.Tensor
    entropy_T: torch.Tensor
    gold_logit_T: torch.Tensor
    gold_rank_T: torch.Tensor
    log_tail_T: torch.Tensor | None = None
    weight_TC: torch.Tensor | None = None
    zeroshot_cross_entropy_T: torch.Tensor | None = None  # for the gate that asks what few shots gained
    taught_T: torch.Tensor | None = None  # 0 where the row carries no teacher term, else 1; None if all do

    @property
    def cross_entropy_T(self) -> torch.Tensor:
        """−log p(gold) of the teacher, over its full distribution."""
        return self.logsumexp_T - self.gold_logit_T


class Loss(ABC):
    """A KD term: how far the student is from its teacher, per answer token.

    Attributes:
        takes_temperature: whether `distillation.temperature` may differ from 1.
        takes_normalize_logits: whether `distillation.normalize_logits` may differ from `none`.
        reads_rest: whether it compares the tokens outside the top K too, as one (`StudentLogits.rest_T`).
        needs: which of `storage.BOUNDABLE` it has to know exactly.
        from_draws: its unbiased estimate from a store with draws; None if there is none.
    """

    takes_temperature: ClassVar[bool] = False
    takes_normalize_logits: ClassVar[bool] = False
    reads_rest: ClassVar[bool] = False
    needs: tuple[str, ...] = ()
    from_draws: ClassVar[type[Loss] | None] = None

    def __init__(self, distillation: DistillationConfig, vocab_size: int) -> None:
        """Args: `distillation` holds what the loss can be told; `vocab_size` is V of the teacher."""
        self.distillation = distillation
        self.vocab_size = vocab_size

    @abstractmethod
    def __call__(self, student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
        """KD_t, (T,): zero where the student says what the teacher says, never negative.

        From draws, both hold in expectation only.
        """


def make_loss(distillation: DistillationConfig, vocab_size: int, signal: str = "topk") -> Loss:
    """The loss that the configuration asks for.

    Args:
        distillation: whose loss and temperature `check_store_fits` found to suit the signal.
        vocab_size: rows of the teacher's `lm_head`.
        signal: of the store: `topk`, `sampled` or `hybrid`.
    """
    loss: type[Loss] = LOSSES[distillation.loss]
    if signal != "topk":
        assert loss.from_draws is not None, distillation.loss
        loss = loss.from_draws
    return loss(distillation, vocab_size)
