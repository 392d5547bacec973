"""For each condition and task: models as rows, languages as columns, and their `language_mean`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from logitbank.evaluation.report.caveats import cut_short, fewer_demonstrations
from logitbank.evaluation.report.labels import Row, key_of, ordered_conditions, ordered_languages, ordered_tasks
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import MISSING, Table
from logitbank.evaluation.report.units import unit_of

# Rows below a score, where there is something to say.
BELOW: dict[str, Callable[[Row], str]] = {"demonstrations": fewer_demonstrations, "cut short": cut_short}


def condition_tables(results: Results) -> list[Table]:
    """A heading for each condition, and a table for each of its tasks and metrics."""
    tables = []
    for condition in ordered_conditions(row["condition"] for row in results.task_averages):
        tables.append(Table(f"Condition: {condition}", [], []))
        own = [row for row in results.task_averages if row["condition"] == condition]
        for task in ordered_tasks(row["task"] for row in own):
            languages = ordered_languages(row["language"] for row in results.cells if row["task"] == task)
            metrics = {row["metric"]: row["is_primary"] for row in own if row["task"] == task}
            for metric in sorted(metrics, key=lambda name: (not metrics[name], name)):
                means = [row for row in own if row["task"] == task and row["metric"] == metric]
                rows = [text for mean in sorted(means, key=key_of) for text in _language_rows(results, mean, languages)]
                header = ["model", *languages, "language_mean", "seeds"]
                groups = [1 + len(languages)]
                tables.append(
                    Table(
                        f"{condition}: {task} ({metric}, {unit_of(metric).name})", header, rows, level=3, groups=groups
                    )
                )
    return tables


def _language_rows(results: Results, mean: Row, languages: Sequence[str]) -> list[list[str]]:
    cells = {cell["language"]: cell for cell in results.cells_of(mean, task=mean["task"], metric=mean["metric"])}
    texts = [results.cell_text(cells[language]) if language in cells else MISSING for language in languages]
    label = results.labels.row(mean)
    rows = [[label, *texts, results.task_average(mean), str(mean["seeds"])]]
    for name, say in BELOW.items():
        said = [say(cells[language]) or MISSING if language in cells else MISSING for language in languages]
        if mean["is_primary"] and set(said) != {MISSING}:
            rows.append([f"{label}: {name}", *said, say(mean) or MISSING, MISSING])
    return rows
