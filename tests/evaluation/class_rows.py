"""Result rows of class probabilities, made by hand as evaluations write them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.preference import CLASSES, TASK
from logitbank.storage.results import write_rows
from logitbank.tasks.scoring.classes import class_metrics, class_statistics

Floats = np.ndarray[Any, np.dtype[np.float64]]


def softmax(logits: Floats) -> Floats:
    """Rows of probabilities."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def labels(rng: np.random.Generator, count: int) -> Floats:
    """(N,3) one-hot targets."""
    return np.eye(3)[rng.integers(0, 3, count)]


def add_class_run(
    results: Path, probabilities: Floats, targets: Floats | None, *, ids: Sequence[str] | None = None,
    clusters: Sequence[str] | None = None, split: str = "test", condition: str = "distilled", model: str = "m",
    seed: int = 1, fold: int | None = None, step: int = 100, setup: str = "s", day: int = 1,
    checkpoint: str | None = None, run: str | None = None, more: Mapping[str, Floats] | None = None,
    about: Mapping[str, Any] | None = None, question: str = "Which is better, {}?",
) -> str:  # fmt: skip
    """One evaluation of a student of comparisons; its name.

    `more` holds statistics beside those of the probabilities, `about` more columns of `runs`.
    """
    own = ids if ids is not None else [str(index) for index in range(len(probabilities))]
    run = run or f"{condition}-{model}-{seed}-{fold}-{step}-{split}-{setup}-{day}"
    identity = {"run": run, "model": model, "condition": condition, "seed": seed, "step": step}
    identity["checkpoint"] = checkpoint or f"out/{condition}/fold-{fold}/final"
    evaluation = {"split": split, "max_samples": 10_000, "tta_tokens": [], "swap_average": False, "load_in_8bit": False}
    trained = {"setup": f"{setup}-{split}", "held_out_fold": fold, "training_run": f"t-{condition}-{seed}-{fold}",
               "weights": f"w-{condition}-{seed}-{fold}-{step}", "config": json.dumps({"evaluation": evaluation}),
               "max_steps": step}  # fmt: skip
    created = datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)
    row = {**identity, **trained, "kind": "evaluation", "created_at": created, **(about or {})}
    write_rows(results, "runs", [row], run)
    where = {**identity, "task": TASK, "language": "und", "split": split, "method": "classify"}
    statistics = {f"p_{name}": probabilities[:, column] for column, name in enumerate(CLASSES)} | dict(more or {})
    if targets is not None:
        scored = class_statistics(probabilities, targets)
        statistics |= scored
        values = class_metrics({name: numbers.mean() for name, numbers in scored.items()})
        metrics = [
            {**where, "metric": name, "value": float(value), "is_primary": name == "log_loss", "examples": len(own),
             "examples_hash": str(sorted(own))}
            for name, value in values.items()
        ]  # fmt: skip
        write_rows(results, "metrics", metrics, f"{run}@{TASK}.und")
    rows = [
        {
            **where, "example_id": f"{TASK}/und/{split}/{row_id}", "cluster": None if clusters is None else clusters[i],
            "prompt_hash": "0", "demonstrations": 0, "question": question.format(row_id),
            "output": json.dumps(dict(zip(CLASSES, probabilities[i].tolist(), strict=True))),
            "parsed": json.dumps(CLASSES[int(probabilities[i].argmax())]),
            "gold": None if targets is None else json.dumps(dict(zip(CLASSES, targets[i].tolist(), strict=True))),
            "score": None if targets is None else -float(statistics["log_loss"][i]),
            "statistics": {name: float(numbers[i]) for name, numbers in statistics.items()},
        }
        for i, row_id in enumerate(own)
    ]  # fmt: skip
    write_rows(results, "predictions", rows, f"{run}@{TASK}.und")
    return run
