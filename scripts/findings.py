"""What a study found, in a few words: averages, and which differences between students are resolved."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from logitbank.errors import counted
from logitbank.evaluation.report.class_table import class_sentences
from logitbank.evaluation.report.labels import Row, ordered_conditions, ordered_models, ordered_tasks
from logitbank.evaluation.report.markdown import markdown_section
from logitbank.evaluation.report.overview import overview_tables
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import average
from logitbank.evaluation.report.terminal import print_table
from logitbank.evaluation.report.write import write_report
from logitbank.experiment import GAPS
from logitbank.storage.results import Catalogue


@dataclass(frozen=True)
class Findings:
    """What the rows of a study say.

    Attributes:
        catalogue: of the rows.
        results: what tables show of them.
    """

    catalogue: Catalogue
    results: Results

    @classmethod
    def of(cls, directory: Path, stores: Sequence[str]) -> Findings:
        """The findings of a directory of result rows; `stores` adds what their teachers know."""
        catalogue = Catalogue([directory], stores)
        return cls(catalogue, Results.load(catalogue))

    def write_report(self, markdown: Path) -> Path:
        """Write the whole report and return its HTML page."""
        return write_report(self.catalogue, markdown)[-1]

    def print_overview(self) -> None:
        """One table for each model, its tasks, conditions and gaps: within a terminal's width, piped as Markdown."""
        for table in overview_tables(self.results):
            if sys.stdout.isatty():
                print_table(Console(highlight=False), table)
            else:
                print(markdown_section(table))

    def averages(self) -> Iterator[str]:
        """For each model its conditions: a mean, or from where to where several variants go."""
        rows, models = self.results.main_averages, ordered_models(self.results.main_averages)
        for model in models:
            own = [row for row in rows if row["model"] == model]
            texts = []
            for condition in ordered_conditions(row["condition"] for row in own):
                means = sorted(
                    (row for row in own if row["condition"] == condition), key=lambda row: float(row["task_mean"])
                )
                shown = [average(row["task_mean"], row["cells"], row["expected_cells"]) for row in means]
                several = f"{shown[0]} to {shown[-1]} ({len(shown)} variants)"
                texts.append(f"{condition} {several if len(shown) > 1 else shown[0]}")
            named = f"{self.results.labels.models[model]} " if len(models) > 1 else ""
            yield named + ", ".join(texts)

    def of_classes(self) -> list[str]:
        """Where class probabilities are scored: whether the log loss of each series is better than finetuned's."""
        return [sentence.rstrip(".") for sentence in class_sentences(self.results)]

    def resolved(self) -> Iterator[str]:
        """For each gap: the tasks in which it is resolved; where a task has several rows, in how many of them."""
        for pair in GAPS:
            rows = [row for row in self.results.task_gaps if (row["minuend"], row["subtrahend"]) == pair]
            if not rows:
                continue
            signs = {"higher": self._tasks_resolved(rows, 1), "lower": self._tasks_resolved(rows, -1)}
            if len({row["task"] for row in rows}) < len(rows):  # several models or variants
                found = ", ".join(f"{word} in {len(tasks)}" for word, tasks in signs.items())
                yield f"{pair[0]}−{pair[1]} {found} of {counted(len(rows), 'gap')}"
            else:
                named = [f"{word} in {', '.join(ordered_tasks(tasks))}" for word, tasks in signs.items() if tasks]
                found = ", ".join(named) or "not resolved"
                yield f"{pair[0]}−{pair[1]} {found} ({counted(len(rows), 'task')})"

    def _tasks_resolved(self, rows: Sequence[Row], sign: int) -> list[str]:
        """Tasks of the rows whose difference has this sign for sure."""
        found = []
        for row in rows:
            interval = self.results.gap_interval(row)
            if interval is not None and interval.excludes_zero and row["difference"] * sign > 0:
                found.append(str(row["task"]))
        return found
