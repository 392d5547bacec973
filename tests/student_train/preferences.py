"""A tiny world of comparisons: pairs with a hidden rule, a store of them, and a Qwen3 that reads bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config, load_config
from logitbank.preference import Pair, SeenPrompts, prompt_keys
from logitbank.storage import LabelSpec, Scorer, open_label_builder
from logitbank.student_train.classifier.train import train_classifier
from logitbank.student_train.records import Run
from tests import tiny

FOLDS, PER_FOLD, EXTERNAL, VALIDATION = 3, 8, 10, 9
WORDS = ("red", "green", "blue", "black")
ANSWERS = ("yes", "no", "it may well be so")


def pairs(split: str, count: int, seed: int) -> list[Pair]:
    """Pairs whose longer answer is preferred; some are ties, some have soft labels."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        a, b = (ANSWERS[index] for index in generator.integers(0, len(ANSWERS), 2))
        target = (0.0, 0.0, 1.0) if a == b else (1.0, 0.0, 0.0) if len(a) > len(b) else (0.25, 0.5, 0.25)
        prompt = f"{split} {number}: {WORDS[number % len(WORDS)]}?"
        found.append(Pair(f"preference/und/{split}/{number}", (prompt,), (a,), (b,), target))
    return found


TRAIN = pairs("train", FOLDS * PER_FOLD, 1)
FOLD = np.repeat(np.arange(FOLDS, dtype=np.int8), PER_FOLD)
OUTSIDE = pairs("external", EXTERNAL, 2)
HELD = pairs("validation", VALIDATION, 3)
PART = (np.arange(VALIDATION) % 3).astype(np.int8)


def logits_of(view: str) -> NDArray[np.float32]:
    """What the view's teacher says of the training rows, (N, 3)."""
    generator = np.random.default_rng([len(view), ord(view[0])])
    return generator.normal(0, 2, (len(TRAIN), 3)).astype(np.float32)


def make_store(directory: Path, *, external: Sequence[Pair] = OUTSIDE, parts: NDArray[np.int8] = PART) -> str:
    """A store with the views `llama` and `qwen`, and `partial`, of which fold 2 is still to be scored."""
    url = str(directory / "labels.zarr")
    spec = LabelSpec(folds=FOLDS, seed=1, identity={}, shard_rows=4)
    with open_label_builder(url, spec, TRAIN, FOLD, HELD, parts, external) as builder:
        for view in ("llama", "qwen", "partial"):
            builder.add_view(view, {"view": view}, {})
            for shard in range(builder.plan.shards):
                rows, fold = builder.shard_rows(shard), builder.shard_fold(shard)
                if view == "partial" and fold == 2:
                    continue
                others = [pair for pair, of in zip(TRAIN, FOLD, strict=True) if of != fold]
                scorer = Scorer(f"{view}-{fold}", f"w{fold}", fold=fold, seen=SeenPrompts.of(prompt_keys(others)))
                builder.write_shard(view, shard, logits_of(view)[rows.start : rows.stop], scorer)
    return url


def make_model(directory: Path, **changes: Any) -> Path:
    """A random Qwen3 of two layers that reads bytes."""
    shape = {"initializer_range": 0.15, "max_position_embeddings": 512, **changes}
    return tiny.save_model(directory / "tiny", tiny.chat_tokenizer(), rows=280, **shape)


def configure(model: Path, *overrides: str) -> Config:
    """Full fine-tuning in float32, four steps of eight rows."""
    given = [
        f"model.name={model}",
        "tasks=[preference]",
        "data.max_student_tokens=192",
        *tiny.FOUR_STEPS,
        *overrides,
    ]
    return load_config([], given)


def train(config: Config, store: str, output: Path, **changes: Any) -> Path:
    """Train a student and return its final checkpoint; from view `llama` and all rows unless told otherwise."""
    run = Run(config, store, "llama", output, output / "results", rows="all")
    return train_classifier(dataclasses.replace(run, **changes))
