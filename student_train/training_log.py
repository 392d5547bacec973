"""The training log of students that answer in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.outcomes import teacher_log_tail
from logitbank.student_train.losses.step_loss import StepLoss, weighted
from logitbank.student_train.step_log import StepLog

# per-task sums over answer tokens, in this order
TOKENS, CE, KD, WEIGHTED_KD, LAMBDA, TEACHER_CE, DIAGNOSED, TAIL_MASS, AGREE, TAUGHT, TAUGHT_CE, LOSS = range(12)
SUMS = 12
SUMS_OF_0_1_0 = 9  # a checkpoint of that version has the first of them; every row taught


class TrainingLog(StepLog):
    """Averages over the answer tokens since the last log step, per task and over all of them.

    The losses are in nats per answer token (`loss` weighs the tokens as training does, all other means weigh them the
    same). `tail_mass` (the teacher's probability outside the top K) and `top1_agreement` (student's and teacher's
    first choice are the same) are those of the logged step alone. `student_ce` and `teacher_ce` are over the same
    tokens: those that the teacher was asked for. `crossover_step` appears once per task: the first
    log step at which the student's CE is below the teacher's.
    """

    sums = SUMS
    suggestion = "lower the learning rate or lambda_distill"

    def __init__(
        self,
        accelerator: Accelerator,
        tasks: Sequence[str],
        start: int,
        stop: int,
        *,
        every: int,
        has_teacher: bool,
        ce_weight: float = 1.0,
        trackers: Sequence[GeneralTracker],
    ) -> None:
        """Args: `start` and `stop` are steps; `trackers` are told every log step."""
        super().__init__(accelerator, tasks, start, stop, every=every, trackers=trackers)
        self._has_teacher = has_teacher
        self._ce_weight = ce_weight if has_teacher else 1.0
        self._crossed: dict[str, int] = {}

    def add(self, batch: Batch, loss: StepLoss, lambda_T: torch.Tensor) -> None:
        """Add one micro-batch of this rank; diagnoses it where the student's argmax is known."""
        zeros_T = torch.zeros_like(loss.ce_T)
        terms = [zeros_T] * SUMS
        terms[:LAMBDA] = [zeros_T + 1, loss.ce_T, loss.kd_T, lambda_T * loss.kd_T]
        terms[LAMBDA] = zeros_T + lambda_T
        terms[LOSS] = weighted(self._ce_weight * loss.ce_T + lambda_T * loss.kd_T, batch.weight_T)
        if batch.teacher is not None:
            taught_T = zeros_T + 1 if batch.teacher.taught_T is None else batch.teacher.taught_T.to(zeros_T)
            terms[TAUGHT] = taught_T
            terms[TAUGHT_CE] = taught_T * loss.ce_T
            terms[TEACHER_CE] = taught_T * batch.teacher.cross_entropy_T
            if len(loss.argmax_T):
                terms[DIAGNOSED] = taught_T
                terms[TAIL_MASS] = taught_T * teacher_log_tail(batch.teacher).exp()
                terms[AGREE] = taught_T * (loss.argmax_T == batch.top_ids_TK[:, 0])
        terms_TS = torch.stack([term.double() for term in terms], dim=1)
        padded = batch.input_ids_BL.numel()
        self.add_sums(batch.task_T, terms_TS, real_tokens=batch.real_tokens, padded_tokens=padded)

    def of_task(self, step: int, task: str, sums: torch.Tensor) -> dict[str, float]:
        """See `StepLog`."""
        values = self.values(task, sums)
        if self._has_teacher and task not in self._crossed and values["student_ce"] < values["teacher_ce"]:
            self._crossed[task] = step
            values["crossover_step"] = float(step)
        return values

    def state_dict(self) -> dict[str, Any]:
        """See `StepLog`."""
        return {"crossed": dict(self._crossed), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `StepLog`; a state of earlier versions too."""
        self._crossed = dict(state["crossed"])
        if "cosines" in state:  # written by version 0.1.0
            state = {**state, "shown": {"cosine": state["cosines"]} if state["cosines"] else {}}
        super().load_state_dict(state)
        sums = (state["sums"].numel() - 3) // len(self._tasks)
        if self._accelerator.is_main_process:
            if sums <= LOSS:  # of a version in which all tokens counted the same
                self._sums[:, LOSS] = self._sums[:, CE] + self._sums[:, WEIGHTED_KD]
            if sums == SUMS_OF_0_1_0 and self._has_teacher:
                self._sums[:, TAUGHT], self._sums[:, TAUGHT_CE] = self._sums[:, TOKENS], self._sums[:, CE]

    def values(self, task: str, sums: torch.Tensor) -> dict[str, float]:
        """See `StepLog`."""
        means = (sums / sums[TOKENS]).tolist()
        values = {"ce": means[CE], "student_ce": means[CE], "answer_tokens": float(sums[TOKENS])}
        if sums[TAUGHT] > 0:
            values["student_ce"] = float(sums[TAUGHT_CE] / sums[TAUGHT])
        if task == "all":
            values = {"loss": means[LOSS], **values}
        if self._has_teacher:
            values |= {"kd": means[KD], "teacher_ce": float(sums[TEACHER_CE] / sums[TAUGHT]), "lambda": means[LAMBDA]}
            if sums[DIAGNOSED] > 0:
                diagnosed = (sums / sums[DIAGNOSED]).tolist()
                values |= {"tail_mass": diagnosed[TAIL_MASS], "top1_agreement": diagnosed[AGREE]}
        return values

    def line(self, values: Mapping[str, float]) -> str:
        """See `StepLog`."""
        teacher = f"  kd {values['kd']:.4f}  teacher ce {values['teacher_ce']:.4f}" if self._has_teacher else ""
        return f"loss {values['loss']:.4f}  ce {values['ce']:.4f}{teacher}"
