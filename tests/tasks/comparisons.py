"""Files of comparisons, and the settings that name them, for tests of the task `preference`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.preference import Pair, Target
from logitbank.tasks import DataSettings, PreferenceSettings

ONE_HOT = {
    "a": {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
    "b": {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    "tie": {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
}


def row(prompt: object, answer_a: object, answer_b: object, won: str = "a", **more: object) -> dict[str, Any]:
    """A row in the arena's layout with one-hot labels."""
    return {**more, "prompt": prompt, "response_a": answer_a, "response_b": answer_b, **ONE_HOT[won]}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as CSV; lists as JSON."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for one in rows for name in one)))
        table.writeheader()
        table.writerows({name: json.dumps(v) if isinstance(v, list) else v for name, v in one.items()} for one in rows)
    return str(path)


def settings(external: Iterable[str] = (), seed: int = 3, **files: str) -> DataSettings:
    """Settings that name the files of splits."""
    return preferring(PreferenceSettings(external=tuple(external)), seed=seed, **files)


def preferring(preference: PreferenceSettings, seed: int = 3, **files: str) -> DataSettings:
    """Settings of any kind."""
    return DataSettings(seed=seed, files={"preference": files}, preference=preference)


def pair(prompt: str, answer_a: str, answer_b: str, target: Target | None = (1, 0, 0), name: str = "1") -> Pair:
    """A comparison of one turn."""
    return Pair(f"preference/und/train/{name}", (prompt,), (answer_a,), (answer_b,), target)
