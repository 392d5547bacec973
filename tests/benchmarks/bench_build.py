"""A whole build against its own forward passes: python -m tests.benchmarks.bench_build.

Builds stores of real data with the proxy model, of five tasks and of conversations: hashes, the pilot that learns the
numbering of tokens, top K, transfer, encoding and writing (the last two in a thread beside the next shard). The model's
forward passes are timed where they happen, so both times are of the same minutes. Prints for each store seconds on the
clock from start to end, from the first forward pass to the end, and inside forward passes, and the two ratios; the
larger the store, the closer the first comes to the second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from logitbank.configs import Config, load_config
from logitbank.models.huggingface import load_tokenizer
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from logitbank.teacher_cache.fill import fill_share
from logitbank.teacher_cache.plan import make_plan
from logitbank.teacher_cache.session import begin
from tests.benchmarks.proxy import SHARED, proxy_settings


class ForwardClock:
    """Seconds inside a model's forward passes, and when the first began."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.reset()
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave)

    def reset(self) -> None:
        """Begin anew."""
        self.seconds, self.first, self._entered = 0.0, 0.0, 0.0

    def _enter(self, *arguments: Any) -> None:
        self._entered = now()
        self.first = self.first or self._entered

    def _leave(self, *arguments: Any) -> None:
        self.seconds += now() - self._entered


def now() -> float:
    """The clock, when an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, config: Config, view: str, rounds: int) -> None:
    encoder = PromptEncoder(load_tokenizer(config.model))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = HFTeacher(
        config.model,
        dtype="float32",
        tokenizer_size=len(encoder.tokenizer),
        device=device,
        prefix_reuse=config.teacher.prefix_reuse,
    )
    clock = ForwardClock(teacher._model)
    plan = make_plan(config, encoder, (view,))
    for _ in range(rounds):
        clock.reset()
        started = now()
        with (
            tempfile.TemporaryDirectory() as folder,
            begin(f"{folder}/store", config, plan, encoder, teacher) as session,
        ):
            fill_share(session)
        ended = now()
        print(
            f"{name}, {view}: {plan.answer_tokens:,} answer tokens, {ended - started:.1f} s, "
            f"{ended - clock.first:.1f} from the first forward pass, {clock.seconds:.1f} inside forward passes: ratios "
            f"{(ended - started) / clock.seconds:.2f} and {(ended - clock.first) / clock.seconds:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--examples", type=int, default=60, help="of each task and language; 0 for none")
    parser.add_argument("--conversations", type=int, default=30, help="of the chat task")
    parser.add_argument("--rounds", type=int, default=2)
    got = parser.parse_args()
    shards = ["store.shard_tokens=1024", "store.chunk_tokens=1024"]
    for view in ("fewshot", "zeroshot") if got.examples else ():
        config = load_config([], [*proxy_settings(got.shared, got.examples), *shards, "teacher.prefix_reuse=false"])
        measure("tasks", config, view, got.rounds)
    chat = ["tasks=[chat]", f"chat.train={got.shared}/chat/train.jsonl", "store.shard_tokens=4096"]
    config = load_config([], [*proxy_settings(got.shared, got.conversations), *chat])
    measure("conversations", config, "zeroshot", got.rounds)


if __name__ == "__main__":
    main()
