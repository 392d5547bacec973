"""The training log: sums on the device, reduced and written out at every log step.

Nothing here makes the device wait between log steps: a step adds a few sums to one small tensor.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from configs.schema import ConfigError
from student_train.data import Batch
from student_train.losses import StepLoss

logger = logging.getLogger(__name__)

# per-task sums over answer tokens, in this order
TOKENS, CE, KD, WEIGHTED_KD, LAMBDA, TEACHER_CE = range(6)
SUMS = 6


class TrainingLog:
    """Averages over the answer tokens since the last log step, per task and over all of them.

    Rows are `step, task, metric, value`, the losses in nats per answer token, `tokens_per_second` over
    all ranks without padding, `peak_memory` in bytes (device memory where there is a device, else
    resident memory) of the rank that needs most, `padding` and `data_wait` as fractions.
    """

    def __init__(
        self, accelerator: Accelerator, tasks: Sequence[str], start: int, stop: int, *, has_teacher: bool
    ) -> None:
        self._accelerator = accelerator
        self._tasks = tuple(tasks)
        self._has_teacher = has_teacher
        self._stop = stop
        self._bar = tqdm(
            total=stop,
            initial=start,
            unit="step",
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
        )
        self._rows: list[dict[str, Any]] = []
        self._reset()

    def add(self, batch: Batch, loss: StepLoss, lambda_T: torch.Tensor) -> None:
        """Add one micro-batch of this rank."""
        zeros_T = torch.zeros_like(loss.ce_T)
        terms = [zeros_T + 1, loss.ce_T, loss.kd_T, lambda_T * loss.kd_T, zeros_T + lambda_T, zeros_T]
        if batch.teacher is not None:
            terms[TEACHER_CE] = batch.teacher.cross_entropy_T
        terms_TS = torch.stack([term.detach().double() for term in terms], dim=1)
        self._sums.index_add_(0, batch.task_T, terms_TS)
        self._real_tokens += batch.real_tokens
        self._padded_tokens += batch.input_ids_BL.numel()

    def waited(self, seconds: float) -> None:
        """Add time that this rank spent waiting for data."""
        self._waited += seconds

    def end_step(self, step: int, *, every: int, learning_rate: float, grad_norm: Any) -> None:
        """Count one optimizer step; at every `every`-th and the last, log what came since.

        Raises:
            ConfigError: the loss is not finite.
        """
        self._bar.update()
        if step % every and step != self._stop:
            return
        seconds = time.perf_counter() - self._started
        counts = [self._real_tokens, self._padded_tokens, self._waited]
        local = torch.cat([self._sums.flatten(), self._sums.new_tensor(counts)])
        total = self._accelerator.reduce(local, "sum")
        peak = self._accelerator.gather(self._sums.new_tensor([float(peak_memory())])).max()
        sums = total[:-3].reshape(len(self._tasks), SUMS).cpu()
        real, padded, waited = total[-3:].tolist()
        values = self._loss_values("all", sums.sum(dim=0)) | {
            "learning_rate": learning_rate,
            "tokens_per_second": real / seconds,
            "padding": 1 - real / padded,
            "data_wait": waited / seconds / self._accelerator.num_processes,
            "peak_memory": float(peak),
        }
        if grad_norm is not None:
            values["grad_norm"] = float(grad_norm)
        rows = [("all", name, value) for name, value in values.items()]
        for task, task_sums in zip(self._tasks, sums, strict=True):
            if task_sums[TOKENS] > 0:
                rows += [(task, name, value) for name, value in self._loss_values(task, task_sums).items()]
        self._rows += [{"step": step, "task": t, "metric": n, "value": v} for t, n, v in rows]
        if self._accelerator.is_main_process:
            self._print(step, values)
        if not math.isfinite(values["loss"]):
            raise ConfigError(
                f"training.learning_rate: the loss at step {step} is {values['loss']}; "
                "expected a finite number; lower the learning rate or lambda_distill"
            )
        self._reset()

    def take_rows(self) -> list[dict[str, Any]]:
        """The rows that no earlier call returned."""
        rows, self._rows = self._rows, []
        return rows

    def close(self) -> None:
        """Leave the terminal's last line."""
        self._bar.close()

    def _loss_values(self, task: str, sums: torch.Tensor) -> dict[str, float]:
        means = (sums / sums[TOKENS]).tolist()
        values = {"ce": means[CE], "student_ce": means[CE], "answer_tokens": float(sums[TOKENS])}
        if task == "all":
            values = {"loss": means[CE] + means[WEIGHTED_KD], **values}
        if self._has_teacher:
            values |= {"kd": means[KD], "teacher_ce": means[TEACHER_CE], "lambda": means[LAMBDA]}
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
        self._real_tokens = 0
        self._padded_tokens = 0
        self._waited = 0.0
        self._started = time.perf_counter()


def peak_memory() -> int:
    """Bytes: most device memory ever allocated, or this process's largest resident size without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
