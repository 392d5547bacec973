"""Bare forward passes: what a model's logits at answer positions cost before anything is read from them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from logitbank.storage import TeacherRows
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher


def bare_forward(model: Any, batch: Sequence[Sequenced], device: torch.device) -> torch.Tensor:
    """Logits (T, V) as transformers makes them: all layers, and the `lm_head` on answer positions alone."""
    longest = max(map(len, batch))
    input_ids_BL = torch.zeros(len(batch), longest, dtype=torch.long)
    keep_BL = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, item in enumerate(batch):
        input_ids_BL[row, : len(item)] = torch.from_numpy(item.read_ids.astype(np.int64))
        keep_BL[row, item.sequence.logit_positions] = True
    with torch.inference_mode():
        output = model(input_ids=input_ids_BL.to(device), logits_to_keep=keep_BL.to(device), use_cache=False)
    logits: torch.Tensor = output.logits
    return logits


class BareBeside:
    """A teacher engine that runs each batch once more as a bare forward pass, now before the batch and now after.

    Attributes:
        bare: seconds of the bare passes, of this thread's processor, or on the clock with a GPU.
        scoring: seconds of the engine's own work.
        first: this process's seconds when the first batch came.
    """

    reuses_prefixes = False
    batches_itself = False

    def __init__(self, teacher: HFTeacher, model: Any, device: torch.device) -> None:
        self._teacher, self._model, self._device = teacher, model, device
        self.vocab_size = teacher.vocab_size
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.bare = self.scoring = self.first = 0.0
        self._batches = 0

    def identity(self) -> Mapping[str, Any]:
        """See `TeacherEngine.identity`."""
        return self._teacher.identity()

    def score_batches(self, batches: Iterable[Sequence[Sequenced]], top_k: int) -> Iterator[TeacherRows]:
        """See `TeacherEngine.score_batches`."""
        started, bare = self._now(), self.bare
        for rows in self._teacher.score_batches(self._beside(batches), top_k):
            self.scoring += self._now() - started - (self.bare - bare)
            yield rows
            started, bare = self._now(), self.bare

    def _beside(self, batches: Iterable[Sequence[Sequenced]]) -> Iterator[Sequence[Sequenced]]:
        """The batches, each run bare when it is asked for or when the next is."""
        for batch in batches:
            self._batches += 1
            self.first = self.first or time.process_time()
            if self._batches % 2:
                self._run_bare(batch)
            yield batch
            if not self._batches % 2:
                self._run_bare(batch)

    def _run_bare(self, batch: Sequence[Sequenced]) -> None:
        started = self._now()
        bare_forward(self._model, batch, self._device)
        self.bare += self._now() - started

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.thread_time()
        torch.accelerator.synchronize()
        return time.perf_counter()
