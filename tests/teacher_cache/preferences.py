"""A small world of comparisons: a file with gaps and duplicates, a random model, and teachers of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import normalizers

from logitbank.configs import Config, data_settings, load_config
from logitbank.experiment import TRAINING_RECORD, TrainingRecord
from logitbank.models.classifier import open_classifier
from logitbank.models.huggingface import load_tokenizer
from logitbank.preference import SeenPrompts, prompt_keys
from logitbank.tasks.preference import Prepared, prepare
from tests import tiny
from tests.tasks.comparisons import row, write_csv

FOLDS = 3
ROWS = 60  # of the training file
WITHOUT_TEXT = 7  # position of the row without an answer
DUPLICATE = 11  # position of the row that repeats the first, the other way round
LEAKING = 20  # position of the row whose prompt is in test too


def write_rows(directory: Path) -> list[str]:
    """Training and test files, as overrides of the configuration."""
    rows = [
        row(
            f"frage {number // 2 + 100}",
            f"ja {number}",
            f"nein {number}" + " lang" * (number % 19),
            "ab"[number % 2],
            id=f"r{number}",
        )
        for number in range(ROWS)
    ]
    rows[WITHOUT_TEXT]["response_b"] = ""
    first = rows[0]
    rows[DUPLICATE] = row(first["prompt"], first["response_b"], first["response_a"], "b", id=f"r{DUPLICATE}")
    test = [row(rows[LEAKING]["prompt"], "so", "anders", id="t0"), row("ganz neu", "so", "anders", "tie", id="t1")]
    return [
        "tasks=[preference]",
        f"preference.train={write_csv(directory / 'train.csv', rows)}",
        f"preference.test={write_csv(directory / 'test.csv', test)}",
        f"preference.folds={FOLDS}",
        "data.max_student_tokens=240",
        "data.max_teacher_tokens=420",
    ]


def save_base(path: Path, *, split: str | None = None) -> Path:
    """A random language model with one token for each byte; one character may be two."""
    tokenizer = tiny.chat_tokenizer()
    if split is not None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(split, "xy")
    return tiny.save_model(
        path, tokenizer, rows=len(tokenizer), architecture="llama", initializer_range=0.3, max_position_embeddings=4096
    )


def config_of(options: Sequence[str]) -> Config:
    return load_config([], list(options))


def prepared_of(options: Sequence[str]) -> Prepared:
    return prepare(data_settings(config_of(options)))


def save_teacher(
    path: Path,
    options: Sequence[str],
    *,
    seed: int = 1,
    held_out: int | None = None,
    seen: SeenPrompts | None = None,
    head: str = "classifier",
) -> Path:
    """What training leaves of a teacher with a random head; `seen` defaults to all folds but the one held out."""
    config = config_of([*options, f"model.head={head}"])
    classifier = open_classifier(config, device="cpu", new_head=True)
    if classifier.head is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            classifier.head.linear.weight.normal_(generator=generator)
    path.mkdir(parents=True)
    classifier.backbone.save_pretrained(path)
    classifier.save_head(path)
    load_tokenizer(config.model).save_pretrained(path)
    if held_out is not None:
        prepared = prepared_of(options)
        keys = prompt_keys(prepared.train)[prepared.folds != held_out]
        seen = SeenPrompts.of(keys, prompt_keys(prepared.validation)) if seen is None else seen
    if seen is not None:
        seen.write(path)
    record = TrainingRecord(
        run="t", condition="finetuned", model=config.model.name, view=None, seed=seed, config={}, store="",
        store_fingerprint="", view_fingerprint=None, versions={}, held_out_fold=held_out,
    )  # fmt: skip
    (path / TRAINING_RECORD).write_text(json.dumps(record.to_json()))
    return path
