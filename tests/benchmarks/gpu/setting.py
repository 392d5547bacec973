"""What all parts share, with torch and transformers alone: a random model, sequences of random tokens, a clock."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from logitbank.sequences import AnsweredSequence
from tests.tiny import word_tokenizer

SHAPES = {
    "qwen3-1.7b": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 1200,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
}


@dataclass(frozen=True)
class Row:
    """One line of the table that is printed."""

    part: str
    what: str
    value: str


@dataclass(frozen=True)
class Setting:
    """Where and on what the parts run.

    Attributes:
        device: of the models.
        shape: key of `SHAPES`.
        folder: the checkpoint and what the parts write.
        rounds: of each measurement, after one that warms up.
    """

    device: torch.device
    shape: str
    folder: Path
    rounds: int

    @property
    def model(self) -> str:
        """The checkpoint."""
        return str(self.folder / "model")

    @property
    def vocab_size(self) -> int:
        """Rows of its `lm_head`."""
        return SHAPES[self.shape]["vocab_size"]

    @property
    def top_k(self) -> int:
        """Ranks that a teacher keeps."""
        return min(256, self.vocab_size // 8)

    def save_model(self) -> None:
        """Random weights in bfloat16: wide enough apart that logits differ as a trained model's do."""
        torch.manual_seed(0)
        shape: dict[str, Any] = {**SHAPES[self.shape], "tie_word_embeddings": True, "max_position_embeddings": 4096}
        with self.device:
            model: Any = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, initializer_range=0.05))
        model.to(torch.bfloat16)
        model.save_pretrained(self.model)
        word_tokenizer(self.vocab_size).save_pretrained(self.model)

    def sequences(self, count: int, context: int, answer: int, seed: int = 0) -> list[AnsweredSequence]:
        """Random tokens; a tiny shape reads a few of an eighth of each length."""
        if self.shape == "tiny":
            count, context, answer = min(count, 4), context // 8, answer // 8
        rng = np.random.default_rng(seed)
        return [
            AnsweredSequence.answering(
                rng.integers(0, self.vocab_size, context), rng.integers(0, self.vocab_size, answer)
            )
            for _ in range(count)
        ]

    def now(self) -> float:
        """The clock, when the device has done what it was given; on a CPU this process's own time."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    def in_turn(self, works: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each work in every round, works in turn."""
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for number in range(self.rounds + 1):
            for name, work in works.items():
                started = self.now()
                work()
                if number:
                    seconds[name].append(self.now() - started)
        return seconds

    def peak(self, work: Callable[[], object]) -> str:
        """The most memory of the GPU that was taken while `work` ran, what was there before included."""
        if self.device.type != "cuda":
            work()
            return "–"
        torch.cuda.reset_peak_memory_stats()
        work()
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"

    def clean(self) -> None:
        """Give back what a part has left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def median(seconds: list[float]) -> float:
    """Median; seconds."""
    return statistics.median(seconds)


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over rounds of one work's time to another's."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
