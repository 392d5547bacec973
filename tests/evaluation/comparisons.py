"""Comparisons in files, checkpoints that look like classifiers, and a scorer whose logits anyone can work out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitbank.configs import Config
from logitbank.evaluation.checkpoints import Checkpoint, open_checkpoint
from logitbank.evaluation.classify import Classification, classify_all
from logitbank.models.pair_head import HeadSettings, write_head_settings
from logitbank.preference import CLASSES, PackedPair, Pair, SeenPrompts
from logitbank.storage.results import read_rows
from logitbank.storage.results.catalogue import Catalogue
from logitbank.tasks.preference import PairPacker
from tests.evaluation.conftest import checkpoint

Row = Mapping[str, Any]
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


def rows(count: int, seed: int = 0) -> list[Row]:
    """Comparisons of two a prompt, with answers of 1 to 40 words."""
    generator = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(generator.choice(WORDS, size=generator.integers(1, 40)))

    return [
        {
            "id": f"r{seed}-{index}",
            "prompt": f"Question {seed}.{index // 2}?",
            "response_a": text(),
            "response_b": text(),
            "winner": CLASSES[generator.integers(3)],
        }
        for index in range(count)
    ]


def swapped(row: Row) -> Row:
    """The same comparison the other way round."""
    other = {"model_a": "model_b", "model_b": "model_a", "tie": "tie"}
    turned = {"response_a": row["response_b"], "response_b": row["response_a"]}
    return {**row, **turned, **({"winner": other[row["winner"]]} if "winner" in row else {})}


def write_csv(path: Path, found: Sequence[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return path


def classifier_checkpoint(
    path: Path, *, max_tokens: int = 400, head: str = "classifier", seen: SeenPrompts | None = None, **about: Any
) -> Path:
    """A directory that looks like an adapter with a head."""
    config = {"tasks": ["preference"], "distillation": {"alpha": 0.7, "temperature": 2.0, "lambda_distill": 0.5}}
    checkpoint(path, **{"config": config, **about})
    settings = HeadSettings(head, "last" if head == "letters" else "pair", 32, max_tokens, "last")
    write_head_settings(path, settings)
    (SeenPrompts.of([1, 2], [3]) if seen is None else seen).write(path)
    return path


class Formula:
    """Logits out of the tokens of each answer, and remembers what it was asked.

    The first answer is favoured, whatever it says, so that orders differ; so do lengths, which cut answers.
    """

    def __init__(self) -> None:
        self.opened: list[Path | None] = []
        self.asked: list[int] = []

    def __call__(self, config: Config, checkpoint: Checkpoint | None) -> Callable[..., Any]:
        self.opened.append(None if checkpoint is None else checkpoint.path)
        return self.score

    def score(self, packed: Sequence[PackedPair], progress: Callable[[int], object]) -> Any:
        self.asked.append(len(packed))
        progress(len(packed))
        return np.array([logits_of(each) for each in packed], dtype=np.float32)


def logits_of(packed: PackedPair) -> list[float]:
    a, b = (packed.ids[span.start : span.stop].astype(np.int64) for span in (packed.response_a, packed.response_b))
    return [0.5 + (a.sum() % 11) / 1.5, (b.sum() % 11) / 1.5, ((a.sum() + b.sum()) % 7) / 1.5]


def never(*_: Any) -> Any:
    """An opener where nothing is left to do."""
    raise AssertionError("nothing was to be opened")


def numbers(row: Row, kind: str) -> list[float]:
    """The statistics `kind_model_a` and so on of a row of predictions."""
    statistics = dict(row["statistics"])
    return [statistics[f"{kind}_{name}"] for name in CLASSES]


def gold(winner: str) -> str:
    return json.dumps({name: float(name == winner) for name in CLASSES})


def write_files(folder: Path, tokenizer: Any) -> Path:
    """Test and validation files; two of three rows of validation are won by what `Formula` takes for the better one."""
    test, validation = rows(24, seed=1), [dict(row) for row in rows(60, seed=2)]
    packer = PairPacker(tokenizer, max_tokens=400)
    for row in (row for index, row in enumerate(validation) if index % 3):
        prompt, answer_a, answer_b = ((str(row[name]),) for name in ("prompt", "response_a", "response_b"))
        row["winner"] = CLASSES[int(np.argmax(logits_of(packer.pack(Pair("x", prompt, answer_a, answer_b)))))]
    write_csv(folder / "test.csv", test)
    write_csv(folder / "swapped.csv", [swapped(row) for row in test])
    write_csv(folder / "unlabelled.csv", [{k: v for k, v in row.items() if k != "winner"} for row in test])
    write_csv(folder / "validation.csv", validation)
    return folder


def evaluated(config: Config, directory: Path | None, results: Path, opener: Any, **about: Any) -> list[dict[str, Any]]:
    """The rows of `predictions` that an evaluation writes or wrote, in the order of its file."""
    found = None if directory is None else open_checkpoint(directory)
    job = Classification(config, about.pop("condition", "distilled"), found, results, **about)
    (identity,) = classify_all([job], opener=opener)
    written = read_rows(results, "predictions", f"{identity.run}@preference.und")
    assert written is not None
    return written


def metrics_in(results: Path) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in Catalogue([results]).rows("SELECT * FROM metrics")}


def probabilities(pairs: Sequence[Pair], tokenizer: Any, tokens: int) -> Any:
    """(N,3) float64: what `Formula` says, one comparison at a time."""
    packer = PairPacker(tokenizer, max_tokens=tokens)
    return torch.tensor([logits_of(packer.pack(pair)) for pair in pairs]).double().softmax(-1).numpy()
