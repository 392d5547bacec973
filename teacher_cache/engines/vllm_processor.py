"""What runs inside vLLM at each step: reads the teacher's signal from full logits and packs it into them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from logitbank.teacher_cache.engines.carriers import CARRIERS, pack
from logitbank.teacher_cache.signal import read_signal, rows_at_once

ARGUMENTS = "logitbank"  # key of the requests' extra arguments


class _Request(NamedTuple):
    """`generated` is vLLM's own list, which grows with each step."""

    answer_ids: list[int]
    top_k: int
    tokenizer_size: int
    excluded: list[int]
    generated: list[int]


class SignalProcessor(LogitsProcessor):  # type: ignore[misc,unused-ignore]  # untyped where vLLM is not installed
    """Every request brings its answer, K and the ids that may be stored in `extra_args`."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._requests: dict[int, _Request] = {}

    def is_argmax_invariant(self) -> bool:
        """No: the largest entry becomes the gold token's."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow which request is in which row; vLLM asks for this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, params, _, generated in batch_update.added:
            self._requests[row] = _Request(**params.extra_args[ARGUMENTS], generated=generated)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._requests.pop(source), self._requests.pop(target, None)
            self._requests[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self._requests[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Pack (B, V) float32 logits in place. A prompt that is not read to its end has a row as well, unused."""
        if not self._requests:
            return logits
        requests = [self._requests[row] for row in range(len(logits))]
        _, top_k, tokenizer_size, excluded_ids, _ = requests[0]
        excluded = torch.tensor(excluded_ids, device=logits.device) if excluded_ids else None
        gold = [request.answer_ids[len(request.generated)] for request in requests]
        gold_B = torch.tensor(gold, device=logits.device)
        step = rows_at_once(logits.device, logits.shape[1])
        for start in range(0, len(logits), step):
            part, gold_T = logits[start : start + step], gold_B[start : start + step]
            signal = read_signal(part, gold_T, top_k + CARRIERS, tokenizer_size, excluded)
            pack(part, signal, gold_T, top_k, tokenizer_size, excluded)
        return logits
