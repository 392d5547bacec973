"""Ways to have vLLM score given answers, at answers of 30, 300 and 1,000 tokens.

    .venv-vllm/bin/python -m tests.benchmarks.bench_vllm_capture engine decode prompt_logprobs token_embed

`engine` is the vLLM teacher. The others are what vLLM offers by itself:

- `decode` generates as many tokens, and reads no signal at all: less than forcing an answer would take.
- `prompt_logprobs` returns the K largest raw logits of every prompt token; no logsumexp, no entropy.
- `token_embed` (pooling runner) returns the hidden states of every prompt token, for an `lm_head` of our own.

Each way opens the model in a process of its own, and all take turns, so that a busy machine is as busy for each.
Prints answer tokens for each processor second of one shard of random tokens, the median of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from logitbank.configs import Config, load_config
from logitbank.models.head import Head
from logitbank.models.huggingface import lm_head_rows
from logitbank.registry import TEACHER_ENGINES
from logitbank.sequences import AnsweredSequence
from logitbank.teacher_cache.answer_rows import AnswerReader, Unread
from logitbank.teacher_cache.engines.base import Opening, Sequenced
from tests.benchmarks.proxy import SHARED, proxy_settings

LENGTHS = (30, 300, 1000)
PROMPT, SHARD, TOKENS, TOP_K = 100, 4096, 151_000, 256
LONGEST = PROMPT + LENGTHS[-1] + 8

Batch = list[AnsweredSequence]


def shard(length: int) -> Batch:
    """Answers of one length, as many as a shard has room for."""
    rng = np.random.default_rng(length)
    sizes = PROMPT, length
    return [
        AnsweredSequence.answering(*(rng.integers(0, TOKENS, size) for size in sizes))
        for _ in range(max(1, round(SHARD / length)))
    ]


def llm(config: Config, **options: Any) -> Any:
    from vllm import LLM

    return LLM(
        model=config.model.name,
        dtype="float32",
        max_model_len=LONGEST,
        max_num_batched_tokens=config.teacher.batch_tokens,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,
        enforce_eager=True,
        **options,
    )


def engine(config: Config) -> Callable[[Batch], object]:
    teacher = TEACHER_ENGINES["vllm"].open(Opening(config, config.model, TOKENS, LONGEST, os.environ))
    return lambda batch: teacher.score([Sequenced(sequence) for sequence in batch], TOP_K)


def decode(config: Config) -> Callable[[Batch], object]:
    from vllm import SamplingParams, TokensPrompt

    opened = llm(config)

    def run(batch: Batch) -> object:
        asked = SamplingParams(temperature=0, max_tokens=batch[0].answer_length, ignore_eos=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=sequence.prompt_ids.tolist()) for sequence in batch]
        return opened.generate(prompts, asked, use_tqdm=False)

    return run


def prompt_logprobs(config: Config) -> Callable[[Batch], object]:
    from vllm import SamplingParams, TokensPrompt

    opened = llm(config, logprobs_mode="raw_logits", max_logprobs=TOP_K)

    def run(batch: Batch) -> object:
        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=TOP_K, flat_logprobs=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=sequence.ids.tolist()) for sequence in batch]
        return opened.generate(prompts, asked, use_tqdm=False)

    return run


def own_head(config: Config) -> Callable[[Batch, list[torch.Tensor]], object]:
    """What reads rows from hidden states of each sequence."""
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.float32)
    weight = model.get_output_embeddings().weight.detach()
    reader = AnswerReader(Head.of_weight(weight), lm_head_rows(config.model), TOKENS)

    def read(batch: Batch, hidden: list[torch.Tensor]) -> object:
        states = [part[sequence.logit_positions] for part, sequence in zip(hidden, batch, strict=True)]
        gold = np.concatenate([sequence.answer_ids for sequence in batch]).astype(np.int64)
        return reader.read(Unread(torch.cat(states), torch.from_numpy(gold)), TOP_K)

    return read


def token_embed(config: Config) -> Callable[[Batch], object]:
    from vllm import PoolingParams, TokensPrompt
    from vllm.config import PoolerConfig

    opened = llm(config, runner="pooling", convert="embed", pooler_config=PoolerConfig(task="token_embed"))
    read = own_head(config)

    def run(batch: Batch) -> object:
        prompts = [TokensPrompt(prompt_token_ids=sequence.ids[:-1].tolist()) for sequence in batch]
        asked = PoolingParams(use_activation=False)
        outputs = opened.encode(prompts, asked, pooling_task="token_embed", use_tqdm=False)
        return read(batch, [output.outputs.data for output in outputs])

    return run


WAYS = {way.__name__: way for way in (engine, decode, prompt_logprobs, token_embed)}


def serve(way: str, shared: Path) -> None:
    """Run the shard of each length that comes in on a line, and answer with processor seconds."""
    torch.set_num_threads(1)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all in the process whose seconds are counted
    torch.compiler.set_stance("force_eager")
    config = load_config([], [*proxy_settings(shared, 1), "teacher.engine=vllm", "vllm.kv_cache_gib=1"])
    run = WAYS[way](config)
    run(shard(LENGTHS[0])[:8])
    print("ready", flush=True)
    for line in sys.stdin:
        batch = shard(int(line))
        started = time.process_time()
        run(batch)
        print(f"seconds {time.process_time() - started}", flush=True)


def answer(process: subprocess.Popen[str], word: str) -> str:
    """The rest of the next line that begins with a word; vLLM prints lines of its own."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return line.removeprefix(word).strip()
    raise SystemExit(f"{process.args!r} ended")


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", choices=WAYS, default=["engine", "decode"])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.ways[0], arguments.shared)
        return
    command = [sys.executable, "-m", "tests.benchmarks.bench_vllm_capture", "--serve", "--shared", arguments.shared]
    seconds: dict[tuple[str, int], list[float]] = {}
    processes = {}
    for way in arguments.ways:
        processes[way] = subprocess.Popen(
            [*command, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    for process in processes.values():
        answer(process, "ready")
    for _ in range(arguments.rounds):
        for length in LENGTHS:
            for way, process in processes.items():
                assert process.stdin is not None
                print(length, file=process.stdin, flush=True)
                seconds.setdefault((way, length), []).append(float(answer(process, "seconds")))
    for process in processes.values():
        process.kill()
    print("answer tokens".ljust(16), *(f"{length:>8,}" for length in LENGTHS))
    for way in arguments.ways:
        tokens = {length: sum(sequence.answer_length for sequence in shard(length)) for length in LENGTHS}
        speeds = [tokens[length] / statistics.median(seconds[way, length]) for length in LENGTHS]
        print(way.ljust(16), *(f"{speed:8.0f}" for speed in speeds))


if __name__ == "__main__":
    main()
