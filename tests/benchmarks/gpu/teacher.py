"""The transformers teacher against bare forward passes, and a build with its writing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import load_causal_lm
from logitbank.storage import ExampleRecord, StoreSpec, Vocabulary, open_builder
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from tests.benchmarks.bare import bare_forward
from tests.benchmarks.gpu.setting import Row, Setting, median, ratio

# Sequences of a batch, context and answer tokens of each.
KINDS = {"zero-shot": (128, 96, 16), "few-shot": (32, 480, 16), "long answers": (24, 128, 512)}
BATCHES = {"qwen3-1.7b": 6, "tiny": 2}  # of a build, a shard each


def run(setting: Setting) -> Iterator[Row]:
    """Ratios of each kind of prompt, then of whole builds."""
    dtype = "bfloat16" if setting.device.type != "cpu" else "float32"
    source = ModelConfig(name=setting.model)
    model = load_causal_lm(source, dtype=dtype, device=setting.device)
    teacher = HFTeacher(source, dtype=dtype, tokenizer_size=setting.vocab_size, device=setting.device)
    for kind, (count, context, answer) in KINDS.items():
        batch = [Sequenced(sequence) for sequence in setting.sequences(count, context, answer)]
        seconds = setting.in_turn(
            {
                "bare": functools.partial(bare_forward, model, batch, setting.device),
                "score": functools.partial(teacher.score, batch, setting.top_k),
            }
        )
        tokens = sum(item.sequence.answer_length for item in batch)
        yield Row(
            "teacher",
            f"scoring to bare forward passes, {kind}",
            f"{ratio(seconds, 'score', 'bare'):.3f} ({tokens / median(seconds['score']):,.0f} answer tokens/s)",
        )
    for kind in ("zero-shot", "long answers"):
        count, context, answer = KINDS[kind]
        batches = [
            [Sequenced(sequence) for sequence in setting.sequences(count, context, answer, seed)]
            for seed in range(BATCHES[setting.shape])
        ]
        seconds = setting.in_turn(
            {
                "bare": functools.partial(bare_forwards, model, batches, setting.device),
                "build": functools.partial(build, setting, teacher, batches),
            }
        )
        yield Row("teacher", f"build to bare forward passes, {kind}", f"{ratio(seconds, 'build', 'bare'):.3f}")


def bare_forwards(model: Any, batches: list[list[Sequenced]], device: torch.device) -> None:
    """Bare forward passes, whose logits nobody keeps."""
    for batch in batches:
        bare_forward(model, batch, device)


def build(setting: Setting, teacher: HFTeacher, batches: list[list[Sequenced]]) -> None:
    """Score a batch a shard; a thread writes one while the teacher reads the next, as `Session.fill` does."""
    folder = setting.folder / f"store-{len(list(setting.folder.iterdir()))}"
    asked = [item.sequence for batch in batches for item in batch]
    size = setting.vocab_size
    spec = StoreSpec(
        model="random",
        tokenizer_size=size,
        vocab_size=size,
        tokenizer_hash="0" * 64,
        tasks=("nli",),
        languages=("en",),
        top_k=setting.top_k,
        encoding="compact",
        shard_tokens=sum(item.sequence.answer_length for item in batches[0]),
        chunk_tokens=256,
        teacher={"model": "random"},
        identity={},
    )
    records = [ExampleRecord(f"nli/en/train/{number}", "nli", "en", sequence) for number, sequence in enumerate(asked)]

    def learned() -> Vocabulary:
        return Vocabulary.learn(teacher.score(batches[0][:8], setting.top_k).token_ids, size)

    with (
        open_builder(str(folder), spec, records, [], vocabulary=learned) as builder,
        ThreadPoolExecutor(max_workers=1) as writer,
    ):
        builder.add_view("zeroshot", {}, {})
        written = [
            writer.submit(builder.write_shard, "zeroshot", shard, teacher.score(batch, setting.top_k))
            for shard, batch in enumerate(batches)
        ]
        for pending in written:
            pending.result()
