"""Weights of 4 and 8 bits: a QLoRA student takes a step, an 8-bit teacher scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from logitbank.configs.schema import ModelConfig
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from tests.benchmarks.gpu.setting import Row, Setting
from tests.benchmarks.gpu.student import batch_of, stepper


def run(setting: Setting) -> Iterator[Row]:
    """Each in turn; a loss or gradient that is no number ends it."""
    yield from qlora(setting)
    setting.clean()
    batch = [Sequenced(sequence) for sequence in setting.sequences(8, 96, 32)]
    first = {}
    for bits in (8, None):
        teacher = HFTeacher(
            ModelConfig(name=setting.model),
            dtype=None,
            tokenizer_size=setting.vocab_size,
            device=setting.device,
            load_in_8bit=bits is not None,
        )
        rows = teacher.score(batch, setting.top_k)
        if not np.isfinite(rows.logsumexp).all():
            raise RuntimeError("an 8-bit teacher's sums are no numbers")
        first[bits] = rows.token_ids[:, 0]
        del teacher
        setting.clean()
    yield Row(
        "quantised", "8-bit teacher, same first choice as the whole one", f"{(first[8] == first[None]).mean():.1%}"
    )


def qlora(setting: Setting) -> Iterator[Row]:
    """Two steps of a student whose base has 4 bits; it is gone afterwards."""
    step = stepper(setting, ["training.use_lora=true", "lora.load_in_4bit=true"])
    losses: list[float] = []
    batch = batch_of(setting, teacher=True)
    peak = setting.peak(lambda: losses.extend(map(step, [batch, batch])))
    yield Row("quantised", "QLoRA, loss of two steps with a teacher", f"{losses[0]:.3f}, {losses[1]:.3f}")
    yield Row("quantised", "QLoRA, peak memory of a step", peak)
