"""A whole build against the bare forward passes of its own batches: python -m tests.benchmarks.bench_build.

Builds a store of real data with the proxy model, top K, transfer, encoding and writing included (the last two in a
thread beside the next shard), and notes every batch. Then the model alone runs the same batches, logits at the answer
positions and nothing more. Prints both times and their ratio for each view, in seconds on the clock and of the
processor; the pilot that learns the numbering of tokens is part of the build.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from configs import Config, load_config
from configs.models import load_tokenizer
from storage import TeacherRows
from tasks.prompts import PromptEncoder
from teacher_cache.build import build
from teacher_cache.engine import Sequenced
from teacher_cache.hf_engine import HFTeacher
from teacher_cache.plan import make_plan
from tests.benchmarks.proxy import SHARED, proxy_settings


class Recording(HFTeacher):
    """The teacher, which keeps the batches that it was given."""

    batches: list[Sequence[Sequenced]]

    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        self.batches.append(batch)
        return super().score(batch, top_k)

    @torch.inference_mode()
    def run_bare(self, batch: Sequence[Sequenced]) -> None:
        """The forward pass of a batch."""
        longest = max(map(len, batch))
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        keep = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, item in enumerate(batch):
            tokens = np.concatenate([item.prompt_ids, item.answer_ids[:-1]]).astype(np.int64)
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            keep[row, len(item.prompt_ids) - 1 : len(tokens)] = True
        self._model(input_ids=ids, logits_to_keep=keep, use_cache=False)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    clock, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - busy


def measure(config: Config, view: str, rounds: int) -> None:
    encoder = PromptEncoder(load_tokenizer(config.model))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Recording(config.model, dtype="float32", tokenizer_size=len(encoder.tokenizer), device=device)
    plan = make_plan(config, encoder, (view,))
    for _ in range(rounds):
        teacher.batches = []
        with tempfile.TemporaryDirectory() as folder:
            whole = timed(
                lambda folder=folder: build(  # type: ignore[misc]
                    f"{folder}/store", config, plan, encoder, teacher, vocab_size=teacher.vocab_size
                )
            )
        bare = timed(lambda: [teacher.run_bare(batch) for batch in teacher.batches])
        print(
            f"{view}: build {whole[0]:.1f} s ({whole[1]:.1f} of the processor), bare forward passes {bare[0]:.1f} s "
            f"({bare[1]:.1f}), ratio {whole[0] / bare[0]:.2f} ({whole[1] / bare[1]:.2f}); "
            f"{plan.answer_tokens:,} answer tokens",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--examples", type=int, default=60, help="of each task and language")
    parser.add_argument("--rounds", type=int, default=2)
    got = parser.parse_args()
    shards = ["store.shard_tokens=1024", "store.chunk_tokens=1024"]
    config = load_config([], [*proxy_settings(got.shared, got.examples), *shards])
    for view in ("fewshot", "zeroshot"):
        measure(config, view, got.rounds)


if __name__ == "__main__":
    main()
