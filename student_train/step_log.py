"""A training log: sums on the device, reduced and written out at every log step.

Nothing here makes the device wait between log steps: a step adds a few sums to one small tensor.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tqdm import tqdm

from logitbank.errors import TrainingError

logger = logging.getLogger(__name__)


class StepLog(ABC):
    """Averages since the last log step, per task and over all of them; subclasses say of what.

    Rows are `step, task, metric, value`. Whatever the losses are, there are `learning_rate`, `grad_norm`,
    `tokens_per_second` over all ranks without padding, `peak_memory` in bytes (device memory where there is a device,
    else resident memory) of the rank that needs most, `padding` and `data_wait` as fractions.

    Attributes:
        sums: how many sums a task has.
        suggestion: what may help where the loss is not finite.
    """

    sums: ClassVar[int]
    suggestion: ClassVar[str] = "lower the learning rate"

    def __init__(
        self,
        accelerator: Accelerator,
        tasks: Sequence[str],
        start: int,
        stop: int,
        *,
        every: int,
        trackers: Sequence[GeneralTracker],
    ) -> None:
        """Args: `start` and `stop` are steps; `trackers` are told every log step."""
        self._accelerator = accelerator
        self._tasks = tuple(tasks)
        self._stop = stop
        self._every = every
        self._bar = tqdm(
            total=stop,
            initial=start,
            unit="step",
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
        )
        self._rows: list[dict[str, Any]] = []
        self._shown: dict[str, list[float]] = {}
        self._trackers = trackers
        self._reset()

    @abstractmethod
    def values(self, task: str, sums: torch.Tensor) -> dict[str, float]:
        """What is logged of the sums of a task, (S,) float64 on the host, or of `all`; has `loss` for `all`."""

    @abstractmethod
    def line(self, values: Mapping[str, float]) -> str:
        """The losses of all tasks, for people to read."""

    def of_task(self, step: int, task: str, sums: torch.Tensor) -> dict[str, float]:
        """What is logged of one task at a log step."""
        return self.values(task, sums)

    def due(self, step: int) -> bool:
        """Whether a step, counted from 1, is a log step."""
        return step % self._every == 0 or step == self._stop

    def waited(self, seconds: float) -> None:
        """Add time that this rank spent waiting for data."""
        self._waited += seconds

    def paused(self, seconds: float) -> None:
        """Leave out time that was spent on something else than training."""
        self._started += seconds

    def show(self, step: int, metric: str, value: float) -> None:
        """Log one number of a step by itself."""
        self._rows.append({"step": step, "task": "all", "metric": metric, "value": value})
        for tracker in self._trackers:
            tracker.log({f"all/{metric}": value}, step=step)

    def end_step(
        self,
        step: int,
        *,
        learning_rate: float,
        grad_norm: torch.Tensor | None,
        metrics: Mapping[str, float] | None = None,
        last: bool = False,
    ) -> None:
        """Count one optimizer step, from 1; at a log step, log what came since the one before.

        Args:
            step: counted from 1.
            learning_rate: of the step.
            grad_norm: of the step.
            metrics: further numbers, of which the mean is logged.
            last: whether no step follows.

        Raises:
            TrainingError: the loss is not finite.
        """
        self._bar.update()
        for name, value in (metrics or {}).items():
            self._shown.setdefault(name, []).append(value)
        if not (last or self.due(step)):
            return
        seconds = time.perf_counter() - self._started
        total = self._accelerator.reduce(self._local_sums(), "sum")
        peak = self._accelerator.gather(self._sums.new_tensor([float(peak_memory())])).max()
        sums = total[:-3].reshape(len(self._tasks), self.sums).cpu()
        real, padded, waited = total[-3:].tolist()
        values = self.values("all", sums.sum(dim=0)) | {
            "learning_rate": learning_rate,
            "tokens_per_second": real / seconds,
            "padding": 1 - real / padded,
            "data_wait": waited / seconds / self._accelerator.num_processes,
            "peak_memory": float(peak),
        }
        if grad_norm is not None:
            values["grad_norm"] = float(grad_norm)
        values |= {name: sum(seen) / len(seen) for name, seen in self._shown.items()}
        rows = [("all", name, value) for name, value in values.items()]
        for task, task_sums in zip(self._tasks, sums, strict=True):
            if task_sums[0] > 0:
                rows += [(task, name, value) for name, value in self.of_task(step, task, task_sums).items()]
        self._rows += [{"step": step, "task": t, "metric": n, "value": v} for t, n, v in rows]
        if self._accelerator.is_main_process:
            self._print(step, values)
        for tracker in self._trackers:
            tracker.log({f"{task}/{metric}": value for task, metric, value in rows}, step=step)
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"training.learning_rate: the loss at step {step} is {values['loss']}, expected a finite number; "
                f"{self.suggestion}"
            )
        self._reset()

    def take_rows(self) -> list[dict[str, Any]]:
        """The rows that no earlier call returned."""
        rows, self._rows = self._rows, []
        return rows

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to log as if nothing had happened; every rank calls this."""
        sums = self._accelerator.reduce(self._local_sums(), "sum")
        return {"sums": sums.cpu(), "shown": dict(self._shown)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        self._shown = {name: list(seen) for name, seen in state["shown"].items()}
        if self._accelerator.is_main_process:  # the sums of all ranks: one of them carries on
            sums = state["sums"][:-3].reshape(len(self._tasks), -1)
            self._sums[:, : sums.shape[1]] = sums
            self._real_tokens, self._padded_tokens, self._waited = state["sums"][-3:].tolist()

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal's last line and close the trackers."""
        self._bar.close()
        for tracker in self._trackers:
            tracker.finish()

    def add_sums(self, task_T: torch.Tensor, terms_TS: torch.Tensor, *, real_tokens: int, padded_tokens: int) -> None:
        """Add one micro-batch of this rank.

        Args:
            task_T: the task of each term, as its number among the tasks.
            terms_TS: float64, what is summed up; the first sum counts.
            real_tokens: of the micro-batch.
            padded_tokens: likewise, padding included.
        """
        self._sums.index_add_(0, task_T, terms_TS)
        self._real_tokens += real_tokens
        self._padded_tokens += padded_tokens

    def _local_sums(self) -> torch.Tensor:
        counts = self._sums.new_tensor([self._real_tokens, self._padded_tokens, self._waited])
        return torch.cat([self._sums.flatten(), counts])

    def _print(self, step: int, values: dict[str, float]) -> None:
        line = (
            f"step {step}/{self._stop}  {self.line(values)}  "
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
        self._sums = torch.zeros(len(self._tasks), self.sums, dtype=torch.float64, device=device)
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
