"""Padding against the number of batches, for several fixed costs of a batch: python -m tests.benchmarks.bench_padding.

Plans five tasks in English for the proxy model, cuts the plan into shards, and forms the batches of every shard as a
build does. A batch's fixed cost, in tokens, decides between padding and the number of batches; nothing is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.configs import load_config
from logitbank.models import batches
from tests.benchmarks.proxy import SHARED, proxy_settings
from tests.plans import Gathered, gather

VIEWS = ("fewshot", "zeroshot")


def shards_of(plan: Gathered, view: str, shard_tokens: int) -> list[list[int]]:
    """Lengths of the sequences of each shard, without the last token, which predicts nothing."""
    shards: list[list[int]] = [[]]
    filled = 0
    for sequence in plan.views[view].sequences:
        if filled + sequence.answer_length > shard_tokens:
            shards.append([])
            filled = 0
        filled += sequence.answer_length
        shards[-1].append(len(sequence) - 1)
    return shards


def measure(shards: Sequence[Sequence[int]], budget: int) -> str:
    """Share of padding, and number of batches."""
    padded = count = 0
    for lengths in shards:
        for batch in batches.batches_by_length(lengths, budget):
            padded += len(batch) * max(lengths[i] for i in batch)
            count += 1
    return f"{1 - sum(map(sum, shards)) / padded:.1%}, {count}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--examples", type=int, default=400, help="of each task")
    parser.add_argument("--cost", type=int, nargs="+", default=[32, 48, 64, 128, 256], help="of a batch, in tokens")
    got = parser.parse_args()
    config = load_config([], [*proxy_settings(got.shared, got.examples), "languages=[en]"])
    plan = gather(config, VIEWS)
    shards = {view: shards_of(plan, view, config.store.shard_tokens) for view in VIEWS}
    print(f"{len(plan.examples):,} examples, {len(shards[VIEWS[0]])} shards; padding, batches")
    print("| cost of a batch | few-shot | zero-shot |\n| ---: | --- | --- |")
    for cost in got.cost:
        batches.BATCH_COST = cost
        print(f"| {cost} | {' | '.join(measure(shards[view], config.teacher.batch_tokens) for view in VIEWS)} |")


if __name__ == "__main__":
    main()
