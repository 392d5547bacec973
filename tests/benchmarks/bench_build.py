"""A whole build against bare forward passes: python -m tests.benchmarks.bench_build.

Builds stores of real data with the proxy model, of five tasks and of conversations: hashes, the pilot that learns the
numbering of tokens, top K, transfer, encoding and writing (the last two in a thread beside the next shard). Every batch
is also run as a bare forward pass, before it or after it in turn: transformers' own `forward` of the same sequences,
the `lm_head` on answer positions included, whose logits nobody reads. Prints processor seconds of one core for the
bare passes, for scoring (layers, `lm_head`, top K and sums), for the build from its first batch to its end, and for the
whole build; and the ratios of the last three to the first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from logitbank.configs import Config, load_config
from logitbank.models.huggingface import load_causal_lm, load_tokenizer
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from tests.benchmarks.bare import BareBeside
from tests.benchmarks.proxy import SHARED, proxy_settings
from tests.plans import fill_with, gather

CPU = torch.device("cpu")


def measure(name: str, config: Config, view: str, rounds: int) -> None:
    """Build the store so many times and print each."""
    encoder = PromptEncoder(load_tokenizer(config.model))
    plan = gather(config, (view,))
    own = HFTeacher(config.model, dtype="float32", tokenizer_size=len(encoder.tokenizer), device=CPU)
    teacher = BareBeside(own, load_causal_lm(config.model, dtype="float32"), CPU)
    for _ in range(rounds):
        teacher.reset()
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            fill_with(f"{folder}/store", config, (view,), teacher)
        ended = time.process_time() - teacher.bare
        parts = [teacher.scoring, ended - teacher.first, ended - started]
        print(
            f"{name}, {view}: {plan.answer_tokens:,} answer tokens; bare {teacher.bare:.1f} s; scoring, from the first "
            f"batch, whole build: {', '.join(f'{part:.1f} s ({part / teacher.bare:.2f})' for part in parts)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--examples", type=int, default=60, help="of each task and language; 0 for none")
    parser.add_argument("--conversations", type=int, default=30, help="of the chat task")
    parser.add_argument("--view", nargs="+", default=["fewshot", "zeroshot"], help="of the tasks")
    parser.add_argument("--rounds", type=int, default=2)
    got = parser.parse_args()
    torch.set_num_threads(1)  # what one thread's clock counts
    common = ["teacher.prefix_reuse=false"]
    for view in got.view if got.examples else ():
        measure("tasks", load_config([], [*proxy_settings(got.shared, got.examples), *common]), view, got.rounds)
    if got.conversations:
        chat = ["tasks=[chat]", f"chat.train={got.shared}/chat/train.jsonl", *common]
        config = load_config([], [*proxy_settings(got.shared, got.conversations), *chat])
        measure("conversations", config, "zeroshot", got.rounds)


if __name__ == "__main__":
    main()
