"""The vLLM teacher against the transformers teacher, on the same sequences."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import vllm

from logitbank.configs import load_config
from logitbank.registry import TEACHER_ENGINES
from logitbank.teacher_cache.engines.base import Opening, Sequenced
from tests.benchmarks.gpu.setting import Row, Setting, median, ratio

KINDS = {30: 128, 300: 48, 1000: 16}  # answer tokens -> sequences


def run(setting: Setting) -> Iterator[Row]:
    """Answer tokens a second of either engine at answers of three lengths."""
    asked = {
        answer: [Sequenced(sequence) for sequence in setting.sequences(count, 256, answer)]
        for answer, count in KINDS.items()
    }
    longest = max(len(item.sequence) for batch in asked.values() for item in batch)
    teachers = {}
    for engine in ("hf", "vllm"):
        settings = [f"model.name={setting.model}", f"teacher.engine={engine}", f"teacher.top_k={setting.top_k}"]
        config = load_config([], settings)
        opening = Opening(config, config.model, setting.vocab_size, longest, os.environ)
        teachers[engine] = TEACHER_ENGINES[engine].open(opening)
    for answer, batch in asked.items():
        tokens = sum(item.sequence.answer_length for item in batch)
        seconds = setting.in_turn(
            {name: functools.partial(teacher.score, batch, setting.top_k) for name, teacher in teachers.items()}
        )
        yield Row(
            "capture",
            f"vLLM {vllm.__version__} to transformers, answers of {answer} tokens",
            f"{ratio(seconds, 'vllm', 'hf'):.2f} of the time "
            f"({tokens / median(seconds['vllm']):,.0f} and {tokens / median(seconds['hf']):,.0f} answer tokens/s)",
        )
