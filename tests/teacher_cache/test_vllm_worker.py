"""What runs inside vLLM, without vLLM: a model runner that cuts prompts, skips cached tokens and starts over."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows
from logitbank.teacher_cache.engines import vllm_worker
from logitbank.teacher_cache.engines.vllm_worker import NUMBER, Asked, SignalWorker
from logitbank.teacher_cache.sampling import Sampling, add_samples
from logitbank.teacher_cache.signal import signal

WIDTH, ROWS, TOKENS, TOP_K = 16, 80, 71, 6
EXCLUDED = (3, 50)


class Runner:
    """Hidden states are given, not computed; logits are those times a matrix. Its state is laid out as vLLM's."""

    def __init__(self, hidden: list[torch.Tensor], *, gathers: bool = True) -> None:
        self.head = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
        self.hidden, self.gathers = hidden, gathers
        self.model = SimpleNamespace(compute_logits=self._compute_logits)
        self.most_rows = 0  # of logits that were asked for at once
        self.sampled: list[torch.Tensor] = []
        self.execute_model_state: SimpleNamespace | None = None

    def _compute_logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        self.most_rows = max(self.most_rows, len(hidden))
        return hidden @ self.head.T if self.gathers else None

    def execute_model(self, pieces: list[tuple[int, int, int]]) -> None:
        """One step over (request, first token, tokens)."""
        names = [f"r{number}" for number, _, _ in pieces]
        self.requests = {
            name: SimpleNamespace(
                sampling_params=SimpleNamespace(extra_args={NUMBER: number}), num_computed_tokens=done
            )
            for name, (number, done, _) in zip(names, pieces, strict=True)
        }
        self.input_batch = SimpleNamespace(req_ids=names)
        self.query_start_loc = SimpleNamespace(np=np.cumsum([0, *(count for _, _, count in pieces)]))
        states = [self.hidden[number][done : done + count] for number, done, count in pieces]
        states.append(torch.full((3, WIDTH), torch.nan))  # the padding of a CUDA graph
        self.sampled.append(self.model.compute_logits(torch.cat(states)[self.query_start_loc.np[1:] - 1]))
        scheduled = {name: count for name, (_, _, count) in zip(names, pieces, strict=True)}
        self.execute_model_state = SimpleNamespace(
            hidden_states=torch.cat(states), scheduler_output=SimpleNamespace(num_scheduled_tokens=scheduled)
        )


def _sequences() -> list[AnsweredSequence]:
    rng = np.random.default_rng(2)
    layouts = [(20, [(4, 3), (10, 10)]), (9, [(8, 1)]), (30, [(1, 29)])]
    return [AnsweredSequence(rng.integers(0, TOKENS, length), spans) for length, spans in layouts]


def _asked(sequences: list[AnsweredSequence], sampling: Sampling | None = None) -> Asked:
    return Asked(
        positions=[sequence.logit_positions for sequence in sequences],
        answer_ids=np.concatenate([sequence.answer_ids for sequence in sequences]),
        sampling=sampling,
        top_k=TOP_K,
        vocab_size=ROWS,
        tokenizer_size=TOKENS,
        excluded=EXCLUDED,
    )


def _hidden(sequences: list[AnsweredSequence]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(len(sequence) - 1, WIDTH, generator=generator) for sequence in sequences]


def _worker(runner: Runner, rank: int = 0) -> SignalWorker:
    worker = SignalWorker()
    worker.model_runner, worker.rank = runner, rank
    return worker


def _one_at_a_time(runner: Runner, asked: Asked) -> TeacherRows:
    logits = torch.cat([h[p] for h, p in zip(runner.hidden, asked.positions, strict=True)]) @ runner.head.T
    gold, excluded = torch.from_numpy(asked.answer_ids.astype(np.int64)), torch.tensor(EXCLUDED)
    rows = signal(logits, gold, TOP_K, TOKENS, excluded)
    return rows if asked.sampling is None else add_samples(rows, logits, asked.sampling, TOKENS, excluded)


def _check(rows: TeacherRows | None, expected: TeacherRows) -> None:
    assert rows is not None
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(rows, name), values, rtol=1e-5, atol=1e-5, err_msg=name)


# Whole prompts; pieces that cut spans; a request that was preempted after 12 tokens and starts over.
STEPS = {
    "whole": [[(0, 0, 19), (1, 0, 8), (2, 0, 29)]],
    "pieces": [[(2, 0, 5), (0, 0, 12)], [(0, 12, 7), (2, 5, 10)], [(2, 15, 14), (1, 0, 8)]],
    "preempted": [[(0, 0, 12)], [(1, 0, 8), (2, 0, 29)], [(0, 0, 19)]],
    "preempted and cached": [[(0, 0, 12)], [(1, 0, 8), (2, 0, 29)], [(0, 8, 11)]],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("beyond_top", [None, False, True])
def test_rows_do_not_depend_on_the_steps(
    steps: list[list[tuple[int, int, int]]], beyond_top: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vllm_worker.LOGIT_ELEMENTS, "cpu", 4 * ROWS + 1)
    sequences = _sequences()
    total = sum(sequence.answer_length for sequence in sequences)
    uniforms = np.random.default_rng(3).random(total)
    runner = Runner(_hidden(sequences))
    worker = _worker(runner)
    for _ in range(2):  # a second batch finds nothing of the first
        asked = _asked(sequences, None if beyond_top is None else Sampling(9, beyond_top, uniforms))
        worker.ask_signal(asked)
        for pieces in steps:
            runner.execute_model(pieces)
        assert worker.missing_signal() == []
        _check(worker.take_signal(), _one_at_a_time(runner, asked))
    assert runner.most_rows == 4  # never more logits than that at once
    assert all(logits.shape[1] == 1 and not logits.any() for logits in runner.sampled)


def test_what_the_cache_skipped_is_named_and_never_made_up() -> None:
    sequences = _sequences()
    runner = Runner(_hidden(sequences))
    worker = _worker(runner)
    worker.ask_signal(_asked(sequences))
    runner.execute_model([(0, 3, 16), (1, 7, 1), (2, 16, 13)])
    assert worker.missing_signal() == [2]  # the cached tokens of the others are context
    runner.execute_model([(2, 0, 29)])
    assert worker.missing_signal() == []
    _check(worker.take_signal(), _one_at_a_time(runner, _asked(sequences)))
    worker.ask_signal(_asked(sequences))
    runner.execute_model([(0, 9, 10), (2, 0, 29)])
    with pytest.raises(RuntimeError, match="answers of 2 prompts"):
        worker.take_signal()


def test_other_workers_compute_their_share_and_read_nothing() -> None:
    sequences = _sequences()
    runner = Runner(_hidden(sequences), gathers=False)
    worker = _worker(runner, rank=1)
    worker.ask_signal(_asked(sequences))
    runner.execute_model(STEPS["whole"][0])
    assert runner.most_rows == sum(sequence.answer_length for sequence in sequences)
    assert worker.take_signal() is None


def test_the_sampler_has_its_logits_back_afterwards() -> None:
    sequences = _sequences()
    runner = Runner(_hidden(sequences))
    worker = _worker(runner)
    worker.ask_signal(_asked(sequences))
    runner.execute_model(STEPS["whole"][0])
    worker.take_signal()
    runner.execute_model([(0, 0, 19)])
    torch.testing.assert_close(runner.sampled[-1], runner.hidden[0][18:19] @ runner.head.T)
