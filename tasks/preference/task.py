"""Preference: which of two answers people prefer; see docs/preference.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from logitbank.preference import CLASSES, LETTERS, Pair, Target
from logitbank.preference import TASK as NAME
from logitbank.tasks.common import UNDETERMINED, Example, Source, Task
from logitbank.tasks.preference.packing import QUESTION, SYSTEM_PROMPT
from logitbank.tasks.preference.reading import load_pairs
from logitbank.tasks.preference.rows import read_comparison
from logitbank.tasks.scoring.classes import class_metrics, class_statistics
from logitbank.tasks.settings import DataSettings


class Preference(Task):
    """Comparisons of two answers, scored by the probabilities that a model gives to each outcome.

    An output is JSON of probabilities by class: `{"model_a": 0.5, "model_b": 0.3, "tie": 0.2}`.
    """

    name = NAME
    system_prompt = SYSTEM_PROMPT
    languages: tuple[str, ...] = (UNDETERMINED,)
    sources: Mapping[str, Source] = {}
    num_demonstrations = 0
    max_new_tokens = 4
    primary_metric = "log_loss"
    labels: tuple[str, ...] = LETTERS
    max_student_tokens = 1024
    max_teacher_tokens = 2048

    def examples(self, split: str, data: DataSettings) -> Iterator[Example]:
        """The comparisons of a split; see `ReadsFiles`."""
        return map(_example, load_pairs(split, data))

    def content_key(self, example: Example) -> str:
        """The key of prompt and answers, in either order."""
        return str(example.fields["pair"].pair_key)

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row in the arena's layout; None for one without text."""
        found = read_comparison(row, labelled=False)
        return _example(Pair(example_id, *found)) if found.has_text else None

    def user_message(self, example: Example) -> str:
        """The comparison as text, uncut."""
        pair: Pair = example.fields["pair"]
        prompt, answer_a, answer_b = map("\n\n".join, (pair.prompt, pair.response_a, pair.response_b))
        return f"Prompt:\n{prompt}\n\nAnswer A:\n{answer_a}\n\nAnswer B:\n{answer_b}\n\n{QUESTION}"

    def reference(self, example: Example) -> Target | None:
        """The target; None if unknown."""
        pair: Pair = example.fields["pair"]
        return pair.target

    def parse(self, output: str) -> str | None:
        """The likeliest class; None if the output is not probabilities."""
        said = _probabilities(output)
        return None if said is None else CLASSES[int(np.argmax(said))]

    def statistics(
        self, output: str, reference: Sequence[float], language: str, protocol: str | None = None
    ) -> dict[str, float]:
        """Those of `class_statistics`, and `parse_failure`: no probabilities are worth the worst of them."""
        said, target = _probabilities(output), np.array([reference], dtype=np.float64)
        given = np.eye(len(CLASSES))[target.argmin(axis=1)] if said is None else np.array([said])
        scores = {name: float(values[0]) for name, values in class_statistics(given, target).items()}
        return {**scores, "parse_failure": float(said is None)}

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `class_metrics`, and `parse_failure` where it was counted."""
        counted = {"parse_failure": means["parse_failure"]} if "parse_failure" in means else {}
        return {**class_metrics(means), **counted}


def _probabilities(output: str) -> list[float] | None:
    """The probability of each class in an output; None if it does not say them."""
    try:
        said = json.loads(output)
        return [float(said[name]) for name in CLASSES]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _example(pair: Pair) -> Example:
    answer = "" if pair.target is None else LETTERS[max(range(len(CLASSES)), key=pair.target.__getitem__)]
    return Example(pair.example_id, NAME, UNDETERMINED, {"pair": pair}, answer)


TASK = Preference()
