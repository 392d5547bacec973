"""The training log: sums on the device, reduced and written out at every log step.

Nothing here makes the device wait between log steps: a step adds a few sums to one small tensor.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tqdm import tqdm

from logitbank.errors import TrainingError
from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.outcomes import teacher_log_tail
from logitbank.student_train.losses.step_loss import StepLoss, weighted
from logitbank.student_train.step import StepDone

logger = logging.getLogger(__name__)

# per-task sums over answer tokens, in this order
TOKENS, CE, KD, WEIGHTED_KD, LAMBDA, TEACHER_CE, DIAGNOSED, TAIL_MASS, AGREE, TAUGHT, TAUGHT_CE, LOSS = range(12)
SUMS = 12
SUMS_OF_0_1_0 = 9  # a checkpoint of that version has the first of them; every row taught


class TrainingLog:
    """Averages over the answer tokens since the last log step, per task and over all of them.

    Rows are `step, task, metric, value`, the losses in nats per answer token (`loss` weighs the tokens as training
    does, all other means weigh them the same), `tokens_per_second` over
    all ranks without padding, `peak_memory` in bytes (device memory where there is a device, else
    resident memory) of the rank that needs most, `padding` and `data_wait` as fractions. `tail_mass` (the
    teacher's probability outside the top K) and `top1_agreement` (student's and teacher's first choice
    are the same) are those of the logged step alone. `student_ce` and `teacher_ce` are over the same
    tokens: those that the teacher was asked for. `crossover_step` appears once per task: the first
    log step at which the student's CE is below the teacher's.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        tasks: Sequence[str],
        start: int,
        stop: int,
        *,
        every: int,
        has_teacher: bool,
        trackers: Sequence[GeneralTracker],
    ) -> None:
        """Args: `start` and `stop` are steps; `trackers` are told every log step."""
        self._accelerator = accelerator
        self._tasks = tuple(tasks)
        self._has_teacher = has_teacher
        self._stop = stop
        self._every = every
        self._bar = tqdm(
            total=stop,
            initial=start,
            unit="step",
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
        )
        self._rows: list[dict[str, Any]] = []
        self._crossed: dict[str, int] = {}
        self._shown: dict[str, list[float]] = {}
        self._trackers = trackers
        self._reset()

    def due(self, step: int) -> bool:
        """Whether a step, counted from 1, is a log step."""
        return step % self._every == 0 or step == self._stop

    def add(self, batch: Batch, loss: StepLoss, lambda_T: torch.Tensor) -> None:
        """Add one micro-batch of this rank; diagnoses it where the student's argmax is known."""
        zeros_T = torch.zeros_like(loss.ce_T)
        terms = [zeros_T] * SUMS
        terms[:LAMBDA] = [zeros_T + 1, loss.ce_T, loss.kd_T, lambda_T * loss.kd_T]
        terms[LAMBDA] = zeros_T + lambda_T
        terms[LOSS] = weighted(loss.ce_T + lambda_T * loss.kd_T, batch.weight_T)
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
        self._sums.index_add_(0, batch.task_T, terms_TS)
        self._real_tokens += batch.real_tokens
        self._padded_tokens += batch.input_ids_BL.numel()

    def waited(self, seconds: float) -> None:
        """Add time that this rank spent waiting for data."""
        self._waited += seconds

    def end_step(self, step: int, done: StepDone) -> None:
        """Count one optimizer step, from 1; at a log step, log what came since the one before.

        Raises:
            TrainingError: the loss is not finite.
        """
        self._bar.update()
        for name, value in done.metrics.items():
            self._shown.setdefault(name, []).append(value)
        if not self.due(step):
            return
        seconds = time.perf_counter() - self._started
        total = self._accelerator.reduce(self._local_sums(), "sum")
        peak = self._accelerator.gather(self._sums.new_tensor([float(peak_memory())])).max()
        sums = total[:-3].reshape(len(self._tasks), SUMS).cpu()
        real, padded, waited = total[-3:].tolist()
        values = self._loss_values("all", sums.sum(dim=0)) | {
            "learning_rate": done.learning_rate,
            "tokens_per_second": real / seconds,
            "padding": 1 - real / padded,
            "data_wait": waited / seconds / self._accelerator.num_processes,
            "peak_memory": float(peak),
        }
        if done.grad_norm is not None:
            values["grad_norm"] = float(done.grad_norm)
        values |= {name: sum(seen) / len(seen) for name, seen in self._shown.items()}
        rows = [("all", name, value) for name, value in values.items()]
        for task, task_sums in zip(self._tasks, sums, strict=True):
            if task_sums[TOKENS] > 0:
                of_task = self._loss_values(task, task_sums)
                if self._has_teacher and task not in self._crossed and of_task["student_ce"] < of_task["teacher_ce"]:
                    self._crossed[task] = step
                    of_task["crossover_step"] = float(step)
                rows += [(task, name, value) for name, value in of_task.items()]
        self._rows += [{"step": step, "task": t, "metric": n, "value": v} for t, n, v in rows]
        if self._accelerator.is_main_process:
            self._print(step, values)
        for tracker in self._trackers:
            tracker.log({f"{task}/{metric}": value for task, metric, value in rows}, step=step)
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"training.learning_rate: the loss at step {step} is {values['loss']}; "
                "expected a finite number; lower the learning rate or lambda_distill"
            )
        self._reset()

    def take_rows(self) -> list[dict[str, Any]]:
        """The rows that no earlier call returned."""
        rows, self._rows = self._rows, []
        return rows

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to log as if nothing had happened; every rank calls this."""
        sums = self._accelerator.reduce(self._local_sums(), "sum")
        return {"crossed": dict(self._crossed), "sums": sums.cpu(), "shown": dict(self._shown)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        self._crossed = dict(state["crossed"])
        if "cosines" in state:  # written by version 0.1.0
            self._shown = {"cosine": list(state["cosines"])} if state["cosines"] else {}
        else:
            self._shown = {name: list(seen) for name, seen in state["shown"].items()}
        if self._accelerator.is_main_process:  # the sums of all ranks: one of them carries on
            sums = state["sums"][:-3].reshape(len(self._tasks), -1)
            self._sums[:, : sums.shape[1]] = sums
            if sums.shape[1] <= LOSS:  # of a version in which all tokens counted the same
                self._sums[:, LOSS] = sums[:, CE] + sums[:, WEIGHTED_KD]
            if sums.shape[1] == SUMS_OF_0_1_0 and self._has_teacher:
                self._sums[:, TAUGHT], self._sums[:, TAUGHT_CE] = sums[:, TOKENS], sums[:, CE]
            self._real_tokens, self._padded_tokens, self._waited = state["sums"][-3:].tolist()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal's last line and close the trackers."""
        self._bar.close()
        for tracker in self._trackers:
            tracker.finish()

    def _local_sums(self) -> torch.Tensor:
        counts = self._sums.new_tensor([self._real_tokens, self._padded_tokens, self._waited])
        return torch.cat([self._sums.flatten(), counts])

    def _loss_values(self, task: str, sums: torch.Tensor) -> dict[str, float]:
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

    def _print(self, step: int, values: dict[str, float]) -> None:
        teacher = f"  kd {values['kd']:.4f}  teacher ce {values['teacher_ce']:.4f}" if self._has_teacher else ""
        line = (
            f"step {step}/{self._stop}  loss {values['loss']:.4f}  ce {values['ce']:.4f}{teacher}  "
            f"lr {values['learning_rate']:.2e}  {values['tokens_per_second']:,.0f} tokens/s  "
            f"padding {values['padding']:.0%}  waiting {values['data_wait']:.1%}  "
            f"{values['peak_memory'] / 2**30:.2f} GiB"
        )
        if self._bar.disable:
            logger.info(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def _reset(self) -> None:
        device = self._accelerator.device
        self._sums = torch.zeros(len(self._tasks), SUMS, dtype=torch.float64, device=device)
        self._real_tokens = 0.0
        self._padded_tokens = 0.0
        self._waited = 0.0
        self._shown = {}
        self._started = time.perf_counter()


def peak_memory() -> int:
    """Bytes: most device memory ever allocated, or this process's largest resident size without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
