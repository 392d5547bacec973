"""The student as one module: backbone, answer positions, `lm_head`, so that DDP and FSDP wrap it whole.

Shapes: B sequences, L padded length, T answer tokens, K teacher logits, V rows of the `lm_head`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from logitbank.models.head import backbone_of, causal_lm, find_head
from logitbank.models.packed_attention import keep_apart, packed_inputs
from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.answer_logits import answer_logits, read_logits
from logitbank.student_train.losses.base import StudentLogits

logger = logging.getLogger(__name__)


class StudentModule(nn.Module):
    """A causal language model whose forward returns logits at answer positions alone.

    Whether logits are the head's output, and what is done to it, is measured once on four tokens
    (`models.head.find_head`); the head is then applied in chunks. For any other architecture the model's
    own forward computes the answer logits, unchunked.
    """

    def __init__(self, model: nn.Module, *, chunk_tokens: int, packing: bool = False) -> None:
        """Args beyond the obvious.

        chunk_tokens: answer tokens whose logits may be alive at once.
        packing: whether rows may hold several sequences.

        Raises:
            ConfigError: packing, and a model that does not keep the sequences of a row apart.
        """
        super().__init__()
        self.model = model
        if packing:
            keep_apart(causal_lm(model))
        self.chunk_tokens = chunk_tokens
        self.transform = find_head(causal_lm(model))
        # an adapter's dropout may be in any other class; a plain head has nothing to draw
        self.head_draws = type(causal_lm(model).get_output_embeddings()) is not nn.Linear
        if self.transform is None:
            logger.info(
                "student: %s has its own way of computing logits, so answer logits are not chunked",
                type(causal_lm(model)).__name__,
            )

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that FSDP shards one by one; Accelerate asks for them by this name."""
        present = {type(module).__name__ for module in self.modules()}
        return sorted(present & set(causal_lm(self.model)._no_split_modules or []))

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        answer_index_T: torch.Tensor,
        gold_T: torch.Tensor,
        top_ids_TK: torch.Tensor,
        packed_lengths: tuple[int, ...] | None = None,
        with_argmax: bool = False,
        with_rest: bool = False,
    ) -> StudentLogits:
        """Logits of the student where it predicts answer tokens.

        Args:
            input_ids_BL: sequences, right-padded: no real token attends to padding after it, so no mask is needed, and
                none is held in memory.
            answer_index_T: ascending positions in the flattened B·L that predict the answer tokens.
            gold_T: the answer tokens.
            top_ids_TK: the teacher's ids; K may be 0.
            packed_lengths: tokens of each sequence if they are packed into one row.
            with_argmax: also return the id of the largest logit.
            with_rest: also return the logsumexp of all rows but the teacher's ids.
        """
        lm = causal_lm(self.model)
        inputs: dict[str, Any] = {"input_ids": input_ids_BL, "use_cache": False}
        if packed_lengths is not None:
            inputs |= packed_inputs(lm, packed_lengths, input_ids_BL.device)
        if self.transform is not None:
            backbone, head, transform = backbone_of(lm), lm.get_output_embeddings(), self.transform
            hidden_TD = backbone(**inputs).last_hidden_state.flatten(0, 1).index_select(0, answer_index_T)
            return answer_logits(
                hidden_TD,
                lambda chunk_TD: transform(head(chunk_TD)),
                gold_T,
                top_ids_TK,
                chunk_tokens=self.chunk_tokens,
                with_argmax=with_argmax,
                with_rest=with_rest,
                head_draws=self.head_draws,
            )
        logits_TV = self._own_logits(lm, inputs, answer_index_T)
        return read_logits(logits_TV, gold_T, top_ids_TK, with_argmax=with_argmax, with_rest=with_rest)

    @staticmethod
    def _own_logits(lm: Any, inputs: Mapping[str, Any], answer_index_T: torch.Tensor) -> torch.Tensor:
        if "logits_to_keep" in inspect.signature(lm.forward).parameters:
            keep_BL = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
            keep_BL.view(-1)[answer_index_T] = True
            logits = lm(**inputs, logits_to_keep=keep_BL).logits
            return logits.flatten(0, -2)
        return lm(**inputs).logits.flatten(0, 1).index_select(0, answer_index_T)


def run_student(
    student: nn.Module, batch: Batch, *, with_argmax: bool = False, with_rest: bool = False
) -> StudentLogits:
    """The logits of a prepared `StudentModule` at the answer positions of a batch."""
    logits: StudentLogits = student(
        batch.input_ids_BL,
        batch.answer_index_T,
        batch.gold_T,
        batch.top_ids_TK,
        batch.lengths if batch.packed else None,
        with_argmax=with_argmax,
        with_rest=with_rest,
    )
    return logits
