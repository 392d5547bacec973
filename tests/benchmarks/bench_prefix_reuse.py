"""The teacher with and without prefix reuse, on real few-shot and zero-shot prompts of the proxy model.

    python -m tests.benchmarks.bench_prefix_reuse [--shared ../shared] [--examples 40] [--view fewshot]

One shard of a store over English NLI, PA, QA, NER and POS with fixed demonstrations; the token budget and
the batches are those of a build. Prints processor seconds, of which in the transformer's layers (the rest is
the `lm_head` and the top K at answer tokens, which reuse leaves as they are and which weigh most in a model as
small as the proxy), padding and both ratios. The numbers of the two ways are compared as well.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from logitbank.configs import load_config
from logitbank.models.huggingface import load_tokenizer
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from logitbank.teacher_cache.prefixes.prompts import PromptFile
from logitbank.teacher_cache.prefixes.sharing import shared_prefixes
from logitbank.teacher_cache.scoring import Tally, score
from tests.benchmarks.proxy import SHARED, proxy_settings
from tests.plans import gather


class Stopwatch:
    """Processor seconds spent in a module's forward."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds = 0.0
        self._started = 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self._started = time.process_time()

    def _stop(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started


def main() -> None:
    """Run each way once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--examples", type=int, default=40, help="examples per task")
    parser.add_argument("--view", action="append", choices=("fewshot", "zeroshot"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompts = ["languages=[en]", "fewshot.selection=fixed", "fewshot.num_demonstrations={qa: 5}"]
    config = load_config([], [*proxy_settings(arguments.shared, arguments.examples), *prompts])
    encoder = PromptEncoder(load_tokenizer(config.model))
    views = tuple(arguments.view or ("fewshot", "zeroshot"))
    plan = gather(config, views)
    engine = HFTeacher(
        config.model,
        dtype="float32",
        tokenizer_size=len(encoder.tokenizer),
        device=torch.device("cpu"),
        prefix_reuse=True,
    )
    layers = Stopwatch(engine._model.base_model)
    for view in views:
        asked = plan.views[view].sequences
        shared = shared_prefixes(PromptFile(asked), np.zeros(len(asked), dtype=np.int64))
        seconds, in_layers, rows = {}, {}, {}
        for name, depths in (("without", np.zeros_like(shared)), ("with", shared)):
            items = [Sequenced(*item) for item in zip(asked, depths.tolist(), strict=True)]
            tally = Tally()
            # Process time: what the machine does beside does not count.
            layers.seconds = 0.0
            started = time.process_time()
            rows[name], _ = score(items, engine, config.teacher.top_k, config.teacher.batch_tokens, tally)
            seconds[name] = time.process_time() - started
            in_layers[name] = layers.seconds
            print(
                f"{view:8} {name:7} reuse: {seconds[name]:6.1f} s, {layers.seconds:6.1f} s of them in the layers; "
                f"{tally.tokens:,} tokens ({tally.reused_tokens / tally.tokens:.0%} reused), "
                f"padding {tally.padding_waste:.1%}",
                flush=True,
            )
        difference = np.abs(rows["with"].logits - rows["without"].logits).max()
        print(
            f"{view:8} ratio {seconds['without'] / seconds['with']:.2f}, of the layers "
            f"{in_layers['without'] / in_layers['with']:.2f}; logits differ by at most {difference:.1e}"
        )


if __name__ == "__main__":
    main()
