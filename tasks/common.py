"""What a task is: where its data are, how it is asked, how an answer is read and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from logitbank.errors import TaskError
from logitbank.tasks.settings import DataSettings

LANGUAGES = ("en", "hi", "es", "de", "fr", "zh")
UNDETERMINED = "und"  # ISO 639-2, of a task whose examples are in any language: it is there whatever is requested


@dataclass(frozen=True)
class Example:
    """One question with its gold answer.

    Attributes:
        example_id: unique over all tasks, languages, splits and sources: `pos/en/train/17`, the number
            being the row in the hub split; `qa/en/test@xquad/17` for rows of another than the default source.
        task: name of the task, a key of `tasks.TASKS`.
        language: ISO 639-1 code, one of `LANGUAGES`, or `UNDETERMINED`.
        fields: what the prompt needs (`premise`, `tokens` …), and under the name `answers` what only
            the scorer needs.
        answer: the gold answer as the model should write it, without end-of-turn token.
    """

    example_id: str
    task: str
    language: str
    fields: Mapping[str, Any]
    answer: str

    def asks_the_same(self, other: Example) -> bool:
        """Whether both are the same question: the same id, or equal in all that a prompt shows."""
        if self.example_id == other.example_id:
            return True
        return self.task == other.task and _question(self) == _question(other)


def _question(example: Example) -> dict[str, Any]:
    return {name: value for name, value in example.fields.items() if name != "answers"}


@dataclass(frozen=True)
class HubSource:
    """Arguments of `datasets.load_dataset`: repository id, configuration name, split name or slice.

    Without a configuration it is the data set's default one.
    """

    path: str
    config: str | None
    split: str

    def __str__(self) -> str:
        configuration = "" if self.config is None else f"configuration {self.config}, "
        return f"data set {self.path}, {configuration}split {self.split}"


@dataclass(frozen=True)
class FileSource:
    """A file of rows: JSON lines, JSON, CSV or Parquet.

    Attributes:
        path: whole, or from the folder of the file that defines the task's class; a glob or URL will do.
    """

    path: str

    def __str__(self) -> str:
        return f"file {self.path}"


@dataclass(frozen=True)
class Source:
    """One way to fill a task: which hub data or files serve training, validation, test and demonstrations.

    Attributes:
        hub: `(split, language) -> HubSource`, or `FileSource`, split being `train`, `validation` or `test`; called
            only for languages named below.
        train_languages: languages with a training split of their own.
        eval_languages: languages with validation and test data.
        eval_demonstrations: the split that demonstrations come from at evaluation time.
        protocol: name of the benchmark whose rules score this data, where the task knows several; None for
            the task's own.
    """

    hub: Callable[[str, str], HubSource | FileSource]
    train_languages: tuple[str, ...]
    eval_languages: tuple[str, ...]
    eval_demonstrations: str = "validation"
    protocol: str | None = None

    @classmethod
    def of_files(cls, path: str, *, languages: tuple[str, ...]) -> Source:
        """Files of one's own: `reviews-{split}.jsonl`.

        Args:
            path: as `FileSource.path`, `{split}` and `{language}` standing for what is read.
            languages: that have such files.
        """
        return cls(
            lambda split, language: FileSource(path.format(split=split, language=language)), languages, languages
        )


class Task(Protocol):
    """One task, one file. `tasks.TASKS` maps names to instances; adding one is a file and a line.

    A class derived from it has the defaults given here.

    Attributes:
        name: key of `tasks.TASKS`.
        system_prompt: opens every prompt.
        languages: ISO 639-1 codes in which it exists, or `UNDETERMINED` alone.
        sources: the first is the default; `data.sources` in the configuration picks another. None for a task that
            reads files; see `ReadsFiles`.
        num_demonstrations: default of `fewshot.num_demonstrations`.
        max_new_tokens: default of `evaluation.max_new_tokens`.
        primary_metric: the metric that averages are formed of, a key of what `metrics` gives.
        labels: all answers that there are, which `evaluation.method=likelihood` compares; empty where answers
            are free.
        max_student_tokens: default of `data.max_student_tokens`.
        max_teacher_tokens: default of `data.max_teacher_tokens`.
    """

    name: str
    system_prompt: str
    languages: tuple[str, ...]
    sources: Mapping[str, Source]
    num_demonstrations: int
    max_new_tokens: int
    primary_metric: str
    labels: tuple[str, ...]
    max_student_tokens: int = 512
    max_teacher_tokens: int = 2048

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """Turn one row of the hub data set into an example; None if the row cannot be one.

        Class labels arrive as their names where the data set declares them, else as integers. A row that
        lacks a value which is asked for never gets past that point: `load_examples` leaves it out.
        """

    def user_message(self, example: Example) -> str:
        """The user's turn: the question without its answer."""

    def reference(self, example: Example) -> Any:
        """What `statistics` compares with: label, gold answers, tags or solution text."""

    def parse(self, output: str) -> Any | None:
        """The answer read from a raw model text, or None if there is none to be read."""

    def statistics(self, output: str, reference: Any, language: str, protocol: str | None = None) -> dict[str, float]:
        """Per-example numbers, `parse_failure` (0 or 1) among them, whose means give every metric.

        Args:
            output: raw model text.
            reference: see `reference`.
            language: ISO 639-1 code.
            protocol: of the source that the example comes from.
        """

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics (fractions) from the means of the statistics over examples.

        Works on floats and, elementwise, on arrays of means, so that a bootstrap is one call.
        """


@runtime_checkable
class ReadsFiles(Protocol):
    """What a task has beside the members of `Task` whose examples come from files that the configuration names."""

    def examples(self, split: str, data: DataSettings) -> Iterator[Example]:
        """The examples of a split in the order of its file, read on demand.

        Raises:
            TaskError: no file, one that cannot be opened, or a row that is broken.
        """

    def content_key(self, example: Example) -> str:
        """Stands for the content of an example where a random subset is drawn, whatever its place and name."""


def metrics_of(task: Task, statistics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics (fractions) over examples.

    Args:
        task: whose.
        statistics: what `Task.statistics` gave for each.

    Raises:
        TaskError: there is no example.
    """
    if not statistics:
        raise TaskError(f"{task.name}: expected at least one output to score, got none")
    means = {key: float(np.mean([row[key] for row in statistics])) for key in statistics[0]}
    return {name: float(value) for name, value in task.metrics(means).items()}


def class_name(value: Any, names: Sequence[str]) -> str | None:
    """The name of a class label that arrives as name, integer or digit; None if it is not a class.

    The hub marks a missing label as -1.
    """
    if isinstance(value, str) and value in names:
        return value
    try:
        index = int(value)
    except (TypeError, ValueError):
        return None
    return names[index] if 0 <= index < len(names) else None
