"""The standing tables, from the views of `storage.tables`: what goes into which row and column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.render import MISSING, Table, average, percent
from storage.catalogue import Catalogue
from tasks import LANGUAGES, TASKS

CONDITIONS = ("base", "fewshot", "finetuned", "distilled", "control")
GAPS = ("distilled-finetuned", "control-finetuned", "distilled-control")
EXTRA_METRICS = ("exact_match",)  # shown in a table of their own; every other metric is in `metrics`
KEY = ("model", "condition", "setup", "variant")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """Short names of models and of what is compared; say more only where they would be ambiguous."""

    models: Mapping[str, str]
    details: Mapping[tuple[str, str], tuple[bool, bool]]  # (model, condition) -> several setups, variants

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Labels:
        """Labels for the given rows of `averages`."""
        names = {row["model"] for row in rows}
        short = {name: _short(name) for name in names}
        models = {name: label if list(short.values()).count(label) == 1 else name for name, label in short.items()}
        details = {}
        for pair in {(row["model"], row["condition"]) for row in rows}:
            same = [row for row in rows if (row["model"], row["condition"]) == pair]
            details[pair] = (len({row["setup"] for row in same}) > 1, len({row["variant"] for row in same}) > 1)
        return cls(models, details)

    def detail(self, row: Row) -> str:
        """What tells this row from others of the same model and condition; empty where nothing has to."""
        several_setups, several_variants = self.details[row["model"], row["condition"]]
        parts = [row["variant"] or "no λ"] if several_variants else []
        if several_setups:
            parts.append(_setup_label(row["setup"]))
        return ", ".join(parts)

    def row(self, row: Row) -> str:
        """Label of a row whose table fixes the condition."""
        detail = self.detail(row)
        return self.models[row["model"]] + (f" ({detail})" if detail else "")

    def column(self, row: Row) -> str:
        """Label of a column whose row fixes the model."""
        detail = self.detail(row)
        return row["condition"] + (f" ({detail})" if detail else "")


def all_tables(catalogue: Catalogue) -> list[Table]:
    """Every standing table, in reading order."""
    averages = catalogue.rows("SELECT * FROM averages")
    if not averages:
        return []
    labels = Labels.of(averages)
    return [
        *summary_tables(averages, labels),
        *overview_tables(catalogue, averages, labels),
        *condition_tables(catalogue, averages, labels),
    ]


def summary_tables(averages: Sequence[Row], labels: Labels) -> list[Table]:
    """One table for each kind of average: models as rows, conditions as columns."""
    columns = _ordered_columns(averages, labels)
    tables = []
    for name, count, meaning in (
        ("task_language_mean", "cells", "mean over all (task, language) cells, each counting once"),
        ("task_mean", "cells", "mean over tasks of their mean over languages, each task counting once"),
    ):
        rows = []
        for model in _models(averages):
            by_column = {labels.column(row): row for row in averages if row["model"] == model}
            texts = [
                average(by_column[c][name], by_column[c][count], by_column[c][f"expected_{count}"])
                if c in by_column
                else MISSING
                for c in columns
            ]
            rows.append([labels.models[model], *texts])
        note = f"`{name}`, in %: {meaning}. (n/m): only n of the m cells that any model has."
        tables.append(Table(f"Summary per condition: {name}", ["model", *columns], rows, [note]))
    return tables


def overview_tables(catalogue: Catalogue, averages: Sequence[Row], labels: Labels) -> list[Table]:
    """For each model: tasks as rows, conditions and the three gaps as columns."""
    task_rows = catalogue.rows("SELECT * FROM task_averages WHERE is_primary")
    gap_rows = catalogue.rows("SELECT * FROM task_gaps WHERE is_primary")
    tables = []
    for model in _models(averages):
        own = [row for row in task_rows if row["model"] == model]
        columns = _ordered_columns(own, labels)
        gaps = _gap_columns([row for row in gap_rows if row["model"] == model])
        rows = []
        for task in ordered_tasks(row["task"] for row in own):
            cells = {labels.column(row): row for row in own if row["task"] == task}
            texts = [
                average(cells[c]["language_mean"], cells[c]["languages"], cells[c]["expected_languages"])
                if c in cells
                else MISSING
                for c in columns
            ]
            texts += [_gap_text(select(task)) for _, select in gaps]
            metric = next(row["metric"] for row in own if row["task"] == task)
            rows.append([f"{task} ({metric})", *texts])
        means = {labels.column(row): row for row in averages if row["model"] == model}
        rows.append(
            [
                "task_mean",
                *(average(means[c]["task_mean"], means[c]["cells"], means[c]["expected_cells"]) for c in columns),
                *(MISSING for _ in gaps),
            ]
        )
        header = ["task", *columns, *(name for name, _ in gaps)]
        note = "Rows: `language_mean`, the mean over languages, in %; gaps in points, over the cells that both have."
        tables.append(Table(f"Overview: {labels.models[model]}", header, rows, [note]))
    return tables


def condition_tables(catalogue: Catalogue, averages: Sequence[Row], labels: Labels) -> list[Table]:
    """For each condition and task: models as rows, languages as columns, and their `language_mean`."""
    wanted = ", ".join(f"'{metric}'" for metric in EXTRA_METRICS)
    where = f"WHERE is_primary OR metric IN ({wanted})"
    cells = catalogue.rows(f"SELECT * FROM cells {where}")
    means = catalogue.rows(f"SELECT * FROM task_averages {where}")
    tables = []
    for condition in ordered_conditions(row["condition"] for row in averages):
        tables.append(Table(f"Condition: {condition}", [], []))
        own = [row for row in cells if row["condition"] == condition]
        for task in ordered_tasks(row["task"] for row in own):
            languages = ordered_languages(row["language"] for row in cells if row["task"] == task)
            metrics = {row["metric"]: row["is_primary"] for row in own if row["task"] == task}
            for metric in sorted(metrics, key=lambda name: (not metrics[name], name)):
                chosen = [row for row in own if row["task"] == task and row["metric"] == metric]
                chosen_means = [
                    row
                    for row in means
                    if row["condition"] == condition and row["task"] == task and row["metric"] == metric
                ]
                rows = _language_rows(chosen, chosen_means, languages, labels)
                header = ["model", *languages, "language_mean"]
                tables.append(Table(f"{condition}: {task} ({metric}, %)", header, rows, level=3))
    return tables


def _language_rows(
    cells: Sequence[Row], means: Sequence[Row], languages: Sequence[str], labels: Labels
) -> list[list[str]]:
    rows = []
    for mean in sorted(means, key=_key):
        values = {row["language"]: row["value"] for row in cells if _key(row) == _key(mean)}
        texts = [percent(values.get(language)) for language in languages]
        total = average(mean["language_mean"], mean["languages"], mean["expected_languages"])
        rows.append([labels.row(mean), *texts, total])
    return rows


def _gap_columns(rows: Sequence[Row]) -> list[tuple[str, Callable[[str], Row | None]]]:
    """Names of the gap columns of one model, each with a function from task to its row."""
    columns: list[tuple[str, Callable[[str], Row | None]]] = []
    for gap in GAPS:
        keys = sorted({(row["setup"], row["variant"]) for row in rows if row["gap"] == gap})
        several_setups = len({setup for setup, _ in keys}) > 1
        for key in keys:
            by_task = {row["task"]: row for row in rows if row["gap"] == gap and (row["setup"], row["variant"]) == key}
            parts = [key[1]] if len({variant for _, variant in keys}) > 1 else []
            parts += [_setup_label(key[0])] if several_setups else []
            name = gap.replace("-", "−") + (f" ({', '.join(parts)})" if parts else "")
            columns.append((name, by_task.get))
    return columns


def _gap_text(row: Row | None) -> str:
    if row is None:
        return MISSING
    return average(row["difference"], row["languages"], row["expected_languages"], signed=True)


def ordered_conditions(names: Iterable[str]) -> list[str]:
    """The five of the study first, in its order, then all others by name."""
    return _ordered(names, CONDITIONS)


def ordered_tasks(names: Iterable[str]) -> list[str]:
    """In the order of `tasks.TASKS`, unknown ones last by name."""
    return _ordered(names, list(TASKS))


def ordered_languages(names: Iterable[str]) -> list[str]:
    """In the order of `tasks.LANGUAGES`, unknown ones last by name."""
    return _ordered(names, LANGUAGES)


def _ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (first.index(name) if name in first else len(first), name))


def _ordered_columns(rows: Sequence[Row], labels: Labels) -> list[str]:
    order = ordered_conditions(row["condition"] for row in rows)
    keyed = {labels.column(row): (order.index(row["condition"]), labels.column(row)) for row in rows}
    return sorted(keyed, key=lambda column: keyed[column])


def _models(rows: Sequence[Row]) -> list[str]:
    return sorted({row["model"] for row in rows})


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def _setup_label(setup: str) -> str:
    """Published numbers say what they are; a hash of settings is cut short."""
    return setup if setup.startswith("published") else f"setup {setup[:6]}"


def _short(model: str) -> str:
    """The last part of a path or hub id."""
    return model.rstrip("/").rpartition("/")[2] or model
