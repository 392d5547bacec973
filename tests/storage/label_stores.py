"""Small label stores for tests: pairs of a few words, folds by prompt, and teachers that are random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.preference import Pair, SeenPrompts, prompt_keys
from logitbank.storage import LabelSpec, LabelStoreBuilder, Scorer, open_label_builder

FOLDS = 3
ROWS = 14  # of a fold, two a prompt
TARGETS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3))


def pairs(split: str, count: int, first: int = 0) -> list[Pair]:
    """Pairs of one or two turns, two to a prompt; `first` numbers the prompts."""
    made = []
    for row in range(count):
        turns = 1 + row // 2 % 2
        made.append(
            Pair(
                example_id=f"preference/und/{split}/{row}",
                prompt=(f"frage {first + row // 2} é\n", "und dann?")[:1] * turns,
                response_a=(f"ja {row} 日本語",) * turns,
                response_b=("",) * (turns - 1) + (f"nein {row}",),
                target=TARGETS[row % len(TARGETS)],
            )
        )
    return made


def spec(**changes: Any) -> LabelSpec:
    """A specification that `builder` accepts; `changes` replace single fields."""
    fields: dict[str, Any] = {"folds": FOLDS, "seed": 1, "identity": {"dedup": "pair"}, "shard_rows": 8}
    return LabelSpec(**{**fields, **changes})


TRAIN = pairs("train", FOLDS * ROWS)
FOLD = np.repeat(np.arange(FOLDS), ROWS).astype(np.int8)
VALIDATION = pairs("validation", 6, 1000)
PART = np.array([0, 0, 1, 1, 2, 2], np.int8)
EXTERNAL = pairs("external", 4, 2000)


def builder(url: str, *, train: Sequence[Pair] = TRAIN, **changes: Any) -> AbstractContextManager[LabelStoreBuilder]:
    """A builder of the store that all tests use; `changes` go to the specification, `worker(s)` to the builder."""
    workers = {name: changes.pop(name) for name in ("worker", "workers") if name in changes}
    return open_label_builder(url, spec(**changes), train, FOLD, VALIDATION, PART, EXTERNAL, **workers)


def teacher(fold: int, *, weights: str = "w", selected: Sequence[int] = (), **changes: Any) -> Scorer:
    """A teacher that learned from all folds but one, and was selected on validation rows."""
    trained = prompt_keys([pair for pair, of in zip(TRAIN, FOLD, strict=True) if of != fold])
    seen = SeenPrompts.of(trained, [*prompt_keys(VALIDATION[:2]).tolist(), *selected])
    return Scorer(**{"model": f"T{fold}", "weights": f"{weights}{fold}" * 8, "fold": fold, "seen": seen, **changes})


def logits_of(rows: range, view: str = "llama") -> NDArray[np.float32]:
    """What the random teacher says of some training rows, (n, 3)."""
    wide = np.random.default_rng(len(view)).normal(0, 2, (len(TRAIN), 3)).astype(np.float32)
    return wide[rows.start : rows.stop]


def score(made: LabelStoreBuilder, view: str, folds: Sequence[int] = range(FOLDS), **changes: Any) -> None:
    """Let the teachers score what is missing of some folds."""
    made.add_view(view, {"max_tokens": 16}, {})
    for fold in folds:
        for shard in made.missing_shards(view, fold):
            made.write_shard(view, shard, logits_of(made.shard_rows(shard), view), teacher(fold, **changes))


def build(url: str, *, views: Sequence[str] = ("llama",)) -> None:
    """Build a whole store."""
    with builder(url) as made:
        for view in views:
            score(made, view)
