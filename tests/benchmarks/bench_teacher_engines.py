"""The transformers teacher against the vLLM teacher: one shard of real prompts, each in its own environment.

    .venv/bin/python -m tests.benchmarks.bench_teacher_engines hf
    .venv-vllm/bin/python -m tests.benchmarks.bench_teacher_engines vllm

Prints processor seconds of scoring, after a first batch that warms the engine up; not counted are
starting it, reading data and writing. Few-shot prompts are drawn per example and fixed, with prefix reuse.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from logitbank.configs import load_config
from logitbank.models.huggingface import load_tokenizer
from logitbank.registry import TEACHER_ENGINES
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Opening, Sequenced
from logitbank.teacher_cache.prefixes.prompts import PromptFile
from logitbank.teacher_cache.prefixes.sharing import shared_prefixes
from logitbank.teacher_cache.scoring import Tally, score
from tests.benchmarks.proxy import SHARED, proxy_settings
from tests.plans import Gathered, gather


def sequences(plan: Gathered, view: str, shares: bool) -> list[Sequenced]:
    """The whole plan as one shard."""
    asked = plan.views[view].sequences
    depths = np.zeros(len(asked), dtype=np.int32)
    if shares:
        depths = shared_prefixes(PromptFile(asked), np.zeros(len(asked), dtype=np.int64))
    return [Sequenced(sequence, int(depth)) for sequence, depth in zip(asked, depths, strict=True)]


def main() -> None:
    """Run each kind of prompt once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("hf", "vllm"))
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--examples", type=int, default=30, help="examples per task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plans = {}
    for selection in ("per_example", "fixed"):
        kind = ["languages=[en]", f"fewshot.selection={selection}", f"teacher.engine={arguments.engine}"]
        config = load_config([], [*proxy_settings(arguments.shared, arguments.examples), *kind])
        encoder = PromptEncoder(load_tokenizer(config.model))
        plans[selection] = gather(config, ("zeroshot", "fewshot"))
    longest = max(plan.longest for plan in plans.values())
    opening = Opening(config, config.model, len(encoder.tokenizer), longest, os.environ)
    teacher = TEACHER_ENGINES[arguments.engine].open(opening)
    for selection, view in (("per_example", "zeroshot"), ("per_example", "fewshot"), ("fixed", "fewshot")):
        items = sequences(plans[selection], view, teacher.reuses_prefixes)
        score(items[:8], teacher, config.teacher.top_k, config.teacher.batch_tokens, Tally())
        tally = Tally()
        started = time.process_time()
        score(items, teacher, config.teacher.top_k, config.teacher.batch_tokens, tally)
        seconds = time.process_time() - started
        print(
            f"{arguments.engine:4} {view} {selection if view == 'fewshot' else '':11} {seconds:6.1f} s, "
            f"{tally.tokens:,} tokens, {tally.answer_tokens:,} of them answers, {len(items)} examples",
            flush=True,
        )


if __name__ == "__main__":
    main()
