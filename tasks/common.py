"""What a task is: where its data lies, how it is asked, how an answer is read and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

LANGUAGES = ("en", "hi", "es", "de", "fr", "zh")


class TaskError(ValueError):
    """A task, language, split or row that does not exist or does not fit; says what does."""


@dataclass(frozen=True)
class Example:
    """One question with its gold answer.

    Attributes:
        example_id: unique over all tasks, languages and splits: `pos/en/train/17`.
        task: name of the task, a key of `tasks.TASKS`.
        language: ISO 639-1 code, one of `LANGUAGES`.
        fields: what the prompt and the scorer need (`premise`, `tokens`, `answers` …).
        answer: the gold answer as the model should write it, without end-of-turn token.
    """

    example_id: str
    task: str
    language: str
    fields: Mapping[str, Any]
    answer: str


@dataclass(frozen=True)
class HubSource:
    """Arguments of `datasets.load_dataset`: repository id, configuration name, split name."""

    path: str
    config: str
    split: str


@dataclass(frozen=True)
class Source:
    """One way to fill a task: which hub data serve training, validation, test and demonstrations.

    Attributes:
        hub: `(split, language) -> HubSource`; called only for languages named below.
        train_languages: languages with a training split of their own.
        eval_languages: languages with evaluation data.
    """

    hub: Any
    train_languages: tuple[str, ...]
    eval_languages: tuple[str, ...]


class Task(Protocol):
    """One task, one file. `tasks.TASKS` maps names to instances; adding one is a file and a line."""

    name: str
    system_prompt: str
    languages: tuple[str, ...]
    sources: Mapping[str, Source]  # the first is the default; `data.sources` in the config picks another
    num_demonstrations: int
    max_new_tokens: int
    primary_metric: str

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example:
        """Turn one row of the hub data set into an example."""

    def user_message(self, example: Example) -> str:
        """The user's turn: the question without its answer."""

    def reference(self, example: Example) -> Any:
        """What `score` compares with: label, gold answers, tags or solution text."""

    def parse(self, output: str) -> Any | None:
        """The answer read from a raw model text, or None where there is none to be read."""

    def statistics(self, output: str, reference: Any, language: str) -> dict[str, float]:
        """Per-example numbers, `parse_failure` (0 or 1) among them, whose means give every metric."""

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics (fractions) from the means of the statistics over examples.

        Works on floats and, elementwise, on arrays of means, so that a bootstrap is one call.
        """

    def score(self, outputs: Sequence[str], references: Sequence[Any], language: str) -> dict[str, float]:
        """Metrics as fractions over raw model texts; pure."""


def score_by_statistics(
    task: Task, outputs: Sequence[str], references: Sequence[Any], language: str, **options: Any
) -> dict[str, float]:
    """`Task.score` for every task whose metrics are functions of mean per-example statistics."""
    rows = [
        task.statistics(output, reference, language, **options)
        for output, reference in zip(outputs, references, strict=True)
    ]
    if not rows:
        raise TaskError(f"{task.name}: expected at least one output to score, got none")
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {name: float(value) for name, value in task.metrics(means).items()}
