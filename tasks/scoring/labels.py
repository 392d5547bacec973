"""Reading and scoring an answer that is one label of a few."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.tasks.common import Example, Task


class LabelAnswers(Task):
    """The part of a task whose answers are its `labels`, scored by accuracy; the task inherits from it."""

    labels: tuple[str, ...]
    primary_metric = "accuracy"

    def reference(self, example: Example) -> str:
        """The label."""
        return example.answer

    def parse(self, output: str) -> str | None:
        """The first label word."""
        return parse_label(output, self.labels)

    def statistics(self, output: str, reference: str, language: str, protocol: str | None = None) -> dict[str, float]:
        """`correct` and `parse_failure`, each 0 or 1; what cannot be read is wrong."""
        label = self.parse(output)
        return {"correct": float(label == reference), "parse_failure": float(label is None)}

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy` and `parse_failure`."""
        return accuracy_metrics(means)


def parse_label(output: str, labels: Sequence[str]) -> str | None:
    """The label that occurs first in the text as a word of its own, whatever its case; None if none does.

    Models write `Entailment.`, `**neutral**`, `The answer is: yes`. The first one counts, since what
    follows an answer is usually the model continuing with a question of its own.
    """
    text = unicodedata.normalize("NFKC", output).casefold()
    word = rf"(?<![^\W_])({'|'.join(map(re.escape, labels))})(?![^\W_])"
    found = re.search(word, text)
    return found.group(1) if found else None


def accuracy_metrics(means: Mapping[str, Any]) -> dict[str, Any]:
    """`accuracy` and `parse_failure` from the means of the statistics of that kind."""
    return {"accuracy": means["correct"], "parse_failure": means["parse_failure"]}
