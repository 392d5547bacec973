"""The training log of students that compare answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from logitbank.preference import TASK
from logitbank.student_train.classifier.batch import PairRows
from logitbank.student_train.classifier.losses import PairTerms
from logitbank.student_train.step_log import StepLog

TASKS = (TASK,)
# sums over rows, in this order
ROWS, LOSS, CE, RIGHT, TAUGHT, KL, MSE, TAUGHT_CE, TEACHER_CE, AGREE = range(10)


class PairLog(StepLog):
    """Averages over the rows since the last log step.

    Losses are in nats a row. `accuracy` is the share of rows whose likeliest class is the student's too. Over the rows
    that teachers scored there are `kl` at the configured temperature, `mse`, `student_ce`, `teacher_ce` (at that
    temperature) and `top1_agreement` (student's and teacher's first choice are the same).
    """

    sums = 10

    def add(self, batch: PairRows, logits_BC: torch.Tensor, terms: PairTerms) -> None:
        """Add one micro-batch of this rank."""
        ones_B, taught_B = torch.ones_like(terms.ce_B), batch.taught_B.to(terms.ce_B)
        first_B = logits_BC.argmax(dim=1)
        floor = torch.finfo(batch.teacher_BC.dtype).tiny  # a probability that was rounded to nothing
        teacher_ce_B = -(batch.target_BC * batch.teacher_BC.clamp(min=floor).log()).sum(dim=1)
        columns = {
            ROWS: ones_B,
            LOSS: terms.loss_B,
            CE: terms.ce_B,
            RIGHT: first_B == batch.target_BC.argmax(dim=1),
            TAUGHT: taught_B,
            KL: terms.kl_B,
            MSE: terms.mse_B,
            TAUGHT_CE: taught_B * terms.ce_B,
            TEACHER_CE: torch.where(batch.taught_B, teacher_ce_B, 0.0),
            AGREE: batch.taught_B & (first_B == batch.teacher_BC.argmax(dim=1)),
        }
        terms_BS = torch.stack([columns[column].double() for column in range(self.sums)], dim=1)
        self.add_sums(
            torch.zeros_like(first_B),
            terms_BS,
            real_tokens=batch.real_tokens,
            padded_tokens=batch.pairs.input_ids_BL.numel(),
        )

    def values(self, task: str, sums: torch.Tensor) -> dict[str, float]:
        """See `StepLog`."""
        means = (sums / sums[ROWS]).tolist()
        values = {"loss": means[LOSS], "ce": means[CE], "accuracy": means[RIGHT], "rows": float(sums[ROWS])}
        values["student_ce"] = means[CE]
        if sums[TAUGHT] > 0:
            taught = (sums / sums[TAUGHT]).tolist()
            values |= {"kl": taught[KL], "mse": taught[MSE], "student_ce": taught[TAUGHT_CE]}
            values |= {"teacher_ce": taught[TEACHER_CE], "top1_agreement": taught[AGREE]}
        return values

    def line(self, values: Mapping[str, float]) -> str:
        """See `StepLog`."""
        teacher = f"  kl {values['kl']:.4f}  teacher ce {values['teacher_ce']:.4f}" if "kl" in values else ""
        return f"loss {values['loss']:.4f}  ce {values['ce']:.4f}{teacher}  accuracy {values['accuracy']:.3f}"
