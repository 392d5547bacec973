"""What runs inside vLLM's workers: the signal of a prompt's answer positions, read as the prompt is prefilled.

vLLM computes the hidden states of every prompt token, and logits of the last one alone. A worker that `SignalWorker`
extends takes the hidden states of each step, runs vLLM's own `lm_head` over those at answer positions, a few at a
time, and keeps what a store keeps of a row. With tensor parallelism every worker runs its share of the `lm_head`,
vLLM gathers the rows, and the first worker reads them.

Shape letters: L tokens of a step, T answer tokens, D hidden width, V rows of the `lm_head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.storage import TeacherRows, concatenate
from logitbank.teacher_cache.answer_rows import rows_of_logits
from logitbank.teacher_cache.sampling import Sampling

NUMBER = "logitbank"  # key of a request's extra arguments: its place in `Asked.positions`
# Logits computed at once: enough rows for a fast product, few enough for the memory that vLLM leaves.
LOGIT_ELEMENTS = {"cpu": 1 << 23}
LOGIT_ELEMENTS_ACCELERATOR = 1 << 25


@dataclass(frozen=True)
class Asked:
    """What is wanted of a batch of requests.

    Attributes:
        positions: for each request an ascending (T,) int64, the prompt positions whose logits are read.
        answer_ids: (T,) int32, the tokens that follow the positions of all requests, end to end.
        sampling: what to draw besides, for all of them; None for no draws.
        top_k: see `signal.read_signal`; so are the others.
        vocab_size: V.
        tokenizer_size: ids at and above this are padding.
        excluded: ids below it that are ruled out too.
    """

    positions: Sequence[NDArray[np.int64]]
    answer_ids: NDArray[np.int32]
    sampling: Sampling | None
    top_k: int
    vocab_size: int
    tokenizer_size: int
    excluded: Sequence[int] = ()

    def rows(self, logits_TV: torch.Tensor, place_T: NDArray[np.int64]) -> TeacherRows:
        """What is kept of the logits that predict `answer_ids[place_T]`."""
        device = logits_TV.device
        return rows_of_logits(
            logits_TV,
            torch.from_numpy(self.answer_ids[place_T].astype(np.int64)).to(device),
            self.top_k,
            self.tokenizer_size,
            torch.tensor(self.excluded, device=device) if self.excluded else None,
            self.sampling and replace(self.sampling, uniforms=self.sampling.uniforms[place_T]),
        )


class SignalWorker:
    """Three calls for `LLM.collective_rpc`: ask, and when the requests have run, see what is missing and take the rows.

    vLLM adds this class to the bases of its worker's, so it has no `__init__`.
    """

    model_runner: Any
    rank: int
    _tap: _Tap

    def ask_signal(self, asked: Asked) -> None:
        """Read the signal in all steps from here on, until it is taken."""
        if not hasattr(self, "_tap"):
            self._tap = _Tap(self.model_runner, reads=self.rank == 0)
        self._tap.open(asked)

    def missing_signal(self) -> list[int]:
        """Places of requests with answer positions that no step has computed, because the cache had them."""
        return self._tap.missing()

    def take_signal(self) -> TeacherRows | None:
        """Rows of all requests, in the order that they were asked in; None on all workers but the first."""
        return self._tap.close()


class _Tap:
    """Runs between a model runner's forward pass and its sampler, and reads while it is open.

    Args:
        runner: vLLM's; its `execute_model` is replaced, and its model's `compute_logits`.
        reads: whether this worker reads the rows that it helps to compute.
    """

    def __init__(self, runner: Any, *, reads: bool) -> None:
        self._runner = runner
        self._reads = reads
        self._execute_model, runner.execute_model = runner.execute_model, self._execute
        self._compute_logits, runner.model.compute_logits = runner.model.compute_logits, self._sampled_logits
        self._asked: Asked | None = None

    def open(self, asked: Asked) -> None:
        self._asked = asked
        self._first_row = np.cumsum([0, *map(len, asked.positions)])
        self._rows: list[TeacherRows] = []
        self._place_T = np.empty(0, dtype=np.int64)  # of the rows read, among all that are wanted

    def missing(self) -> list[int]:
        absent = np.ones(self._first_row[-1], dtype=bool)
        absent[self._place_T] = False
        numbers = np.searchsorted(self._first_row, np.flatnonzero(absent), side="right") - 1
        return [int(number) for number in np.unique(numbers)]

    def close(self) -> TeacherRows | None:
        missing, rows, self._asked, self._rows = self.missing(), self._rows, None, []
        if missing:
            raise RuntimeError(
                f"vLLM computed no hidden states for answers of {len(missing)} prompts; please report this"
            )
        if not self._reads:
            return None
        source_T = np.empty(self._first_row[-1], dtype=np.int64)
        source_T[self._place_T] = np.arange(len(self._place_T))  # the last, of a position that was computed twice
        return concatenate(rows).take(source_T)

    def _sampled_logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        """Logits for the sampler: a single zero where nobody uses its token, which saves the row."""
        if self._asked is not None:
            return hidden_BD.new_zeros(len(hidden_BD), 1)
        logits_BV: torch.Tensor = self._compute_logits(hidden_BD)
        return logits_BV

    def _execute(self, *arguments: Any, **named: Any) -> Any:
        output = self._execute_model(*arguments, **named)
        state = self._runner.execute_model_state  # None if there was nothing to compute
        if self._asked is not None and state is not None:
            self._read(self._asked, state.hidden_states, state.scheduler_output.num_scheduled_tokens)
        return output

    def _read(self, asked: Asked, hidden_LD: torch.Tensor, scheduled: dict[str, int]) -> None:
        """Keep the signal of one step's answer positions."""
        runner, places, steps = self._runner, [], []
        for row, request_id in enumerate(runner.input_batch.req_ids):
            request = runner.requests[request_id]
            number, done = request.sampling_params.extra_args[NUMBER], request.num_computed_tokens
            wanted = asked.positions[number]
            start, stop = np.searchsorted(wanted, [done, done + scheduled[request_id]])
            places.append(self._first_row[number] + np.arange(start, stop))
            steps.append(wanted[start:stop] - done + runner.query_start_loc.np[row])
        place_T, step_T = np.concatenate(places), torch.from_numpy(np.concatenate(steps)).to(hidden_LD.device)
        self._place_T = np.concatenate([self._place_T, place_T])
        limit = LOGIT_ELEMENTS.get(hidden_LD.device.type, LOGIT_ELEMENTS_ACCELERATOR)
        at_once = max(1, limit // asked.vocab_size)
        for start in range(0, len(place_T), at_once):
            part = slice(start, start + at_once)
            logits_TV = self._compute_logits(hidden_LD[step_T[part]])
            if self._reads:
                self._rows.append(asked.rows(logits_TV, place_T[part]))
