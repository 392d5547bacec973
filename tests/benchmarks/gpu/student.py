"""A student's step with a teacher's rows and without, LoRA and all weights: time and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from logitbank.configs import load_config
from logitbank.configs.schema import DistillationConfig
from logitbank.storage import TeacherRows
from logitbank.student_train.batch import Batch, collate
from logitbank.student_train.losses.mse import Mse
from logitbank.student_train.losses.step_loss import step_loss
from logitbank.student_train.module import StudentModule, run_student
from logitbank.student_train.setup import parameter_groups
from logitbank.student_train.student import build_student
from tests.benchmarks.gpu.setting import Row, Setting, median, ratio

SEQUENCES, CONTEXT, ANSWER = 8, 448, 64


def run(setting: Setting) -> Iterator[Row]:
    """Ratios, then the peak of each kind of step."""
    for name, options in (("LoRA", ["training.use_lora=true"]), ("all weights", ["training.use_lora=false"])):
        yield from steps(setting, name, options)
        setting.clean()


def steps(setting: Setting, name: str, options: list[str]) -> Iterator[Row]:
    """One student's rows; it is gone afterwards."""
    step = stepper(setting, options)
    works = {
        "without": functools.partial(step, batch_of(setting, teacher=False)),
        "with": functools.partial(step, batch_of(setting, teacher=True)),
    }
    seconds = setting.in_turn(works)
    yield Row(
        "student",
        f"step with a teacher to one without, {name}",
        f"{ratio(seconds, 'with', 'without'):.3f} ({1000 * median(seconds['without']):,.0f} ms without)",
    )
    peaks = ", ".join(f"{setting.peak(work)} {kind}" for kind, work in works.items())
    yield Row("student", f"peak memory of a step, {name}", peaks)


def stepper(setting: Setting, options: list[str]) -> Callable[[Batch], float]:
    """Forward, backward and optimizer step of a new student; returns its loss."""
    config = load_config([], [f"model.name={setting.model}", *options])
    student = StudentModule(build_student(config, setting.device), chunk_tokens=config.training.loss_chunk_tokens)
    optimizer = torch.optim.AdamW(parameter_groups(student, 0.01), lr=1e-5)
    mixed = torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.device.type != "cpu")
    mse = Mse(DistillationConfig(), vocab_size=0)

    def step(batch: Batch) -> float:
        batch = batch.to(setting.device)
        weights_T = torch.full(batch.gold_T.shape, 0.5, device=setting.device)
        with mixed:
            logits = run_student(student, batch)
        loss = step_loss(logits, batch.teacher, kd_term=mse, lambda_T=weights_T, step_tokens=len(batch.gold_T)).total
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not (loss.isfinite() and norm.isfinite() and norm > 0):
            raise RuntimeError(f"a step whose loss is {loss.item()} and whose gradient is {norm.item()}")
        return loss.item()

    return step


def batch_of(setting: Setting, *, teacher: bool) -> Batch:
    """Random sequences, with random rows of a teacher or without."""
    sequences = setting.sequences(SEQUENCES, CONTEXT, ANSWER)
    tokens, k = sum(sequence.answer_length for sequence in sequences), setting.top_k
    rng = np.random.default_rng(1)
    rows = None
    if teacher:
        logits = -np.sort(-rng.standard_normal((tokens, k)).astype(np.float32), axis=1)
        zeros = np.zeros(tokens, dtype=np.float32)
        ids = np.stack([rng.choice(setting.vocab_size, k, replace=False) for _ in range(tokens)]).astype(np.int32)
        ranks = zeros.astype(np.int32)
        rows = TeacherRows(ids, logits, logits[:, 0] + 9, zeros, logits[:, 0], ranks, zeros - 3)
    return collate(sequences, [0] * len(sequences), rows, step_tokens=tokens)
