"""What rows and columns of tables are called, and in which order they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.experiment import CONDITIONS
from logitbank.storage.results import SERIES
from logitbank.tasks import LANGUAGES, TASKS

PUBLISHED = "published"  # how the setup of imported numbers begins
KEY = tuple(SERIES.split(", "))  # columns of one series: model, condition, setup, variant, taught_by
DIGITS = 6  # of a hash

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """Short names of models and of series; longer only where a short name would be ambiguous."""

    models: Mapping[str, str]
    details: Mapping[tuple[str, ...], str]  # by key

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Labels:
        """Labels for the given rows, of views that have `KEY`."""
        groups: dict[tuple[Any, ...], dict[tuple[str, ...], Row]] = {}
        for row in rows:
            group = (row["model"], row["condition"], is_imported_sweep(row, rows))
            groups.setdefault(group, {})[key_of(row)] = row
        details: dict[tuple[str, ...], str] = {}
        for same in groups.values():
            details |= zip(same, tell_apart(list(same.values())), strict=True)
        return cls(short_names(row["model"] for row in rows), details)

    def detail(self, row: Row) -> str:
        """What tells this row from others of the same model and condition; empty if nothing has to."""
        return self.details[key_of(row)]

    def row(self, row: Row) -> str:
        """Label of a row whose table fixes the condition."""
        return in_brackets(self.models[row["model"]], self.detail(row))

    def column(self, row: Row) -> str:
        """Label of a column whose row fixes the model."""
        return in_brackets(row["condition"], self.detail(row))

    def series(self, row: Row) -> str:
        """Label where neither is fixed."""
        return f"{self.models[row['model']]} {self.column(row)}"


def tell_apart(rows: Sequence[Row]) -> list[str]:
    """For each series of one model and condition: λ, teacher or training, as far as another one has a different one."""
    variants = [row["variant"] or "no λ" for row in rows]
    parts = [
        texts if len(set(texts)) > 1 else [""] * len(rows) for texts in (variants, _teachers(rows), setup_labels(rows))
    ]
    return [", ".join(text for text in texts if text) for texts in zip(*parts, strict=True)]


def in_brackets(name: str, detail: str) -> str:
    """`distilled (λ=0.5)`, or the name alone."""
    return f"{name} ({detail})" if detail else name


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The last part of each path or hub id, or the whole where two would be alike."""
    short = {name: name.rstrip("/").rpartition("/")[2] or name for name in set(names)}
    return {name: label if list(short.values()).count(label) == 1 else name for name, label in short.items()}


def is_imported_sweep(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row is published numbers of a λ sweep: one λ of several, or what a sweep of its model came with.

    Args:
        row: of a view that has `KEY`.
        rows: all rows of `averages`.
    """
    if not row["setup"].startswith(PUBLISHED):
        return False
    variants: dict[tuple[str, str], set[str]] = {}
    for other in rows:
        if other["model"] == row["model"] and other["setup"].startswith(PUBLISHED):
            variants.setdefault((other["setup"], other["condition"]), set()).add(other["variant"])
    swept = {key for key, found in variants.items() if len(found) > 1}
    return (row["setup"], row["condition"]) in swept or (row["setup"] != PUBLISHED and bool(swept))


def setup_label(setup: str) -> str:
    """Published numbers say what they are; hashes of settings are cut short."""
    if setup.startswith(PUBLISHED):
        return setup
    return "setup " + "/".join(part[:DIGITS] for part in setup.split("/"))


def setup_labels(rows: Sequence[Row]) -> list[str]:
    """For each row how long it was trained, where that tells the setups of all rows apart; else its setup."""
    setups = {row["setup"] for row in rows}
    steps = {row["setup"]: row["max_steps"] for row in rows}
    if len(set(steps.values())) == len(setups) and None not in steps.values():
        return [f"{row['max_steps']:,} steps" for row in rows]
    return [setup_label(row["setup"]) for row in rows]


def ordered_conditions(names: Iterable[str]) -> list[str]:
    """In the order of `experiment.CONDITIONS`, all others by name after them."""
    return _ordered(names, list(CONDITIONS))


def ordered_tasks(names: Iterable[str]) -> list[str]:
    """In the order of `tasks.TASKS`, unknown ones last by name."""
    return _ordered(names, list(TASKS))


def ordered_languages(names: Iterable[str]) -> list[str]:
    """In the order of `tasks.LANGUAGES`, unknown ones last by name."""
    return _ordered(names, LANGUAGES)


def ordered_columns(rows: Sequence[Row], labels: Labels) -> list[str]:
    """Column labels of the given rows, by condition, length of training and λ."""
    order = ordered_conditions(row["condition"] for row in rows)
    keyed = {}
    for row in rows:
        column = labels.column(row)
        keyed[column] = (order.index(row["condition"]), row["max_steps"] or 0, row["lambda_distill"] or 0.0, column)
    return sorted(keyed, key=lambda column: keyed[column])


def ordered_models(rows: Iterable[Row]) -> list[str]:
    """Names of models, sorted."""
    return sorted({row["model"] for row in rows})


def key_of(row: Row) -> tuple[str, ...]:
    """The columns of `KEY` of a row."""
    return tuple(row[name] for name in KEY)


def _teachers(rows: Sequence[Row]) -> list[str]:
    """Teacher, view, K and fingerprint's first digits, without what all share; the first of them stays."""
    words = [row["taught_by"].split() for row in rows]
    shared = set.intersection(*map(set, words)) if words else set()
    return [" ".join(word for place, word in enumerate(own) if place == 0 or word not in shared) for own in words]


def _ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (first.index(name) if name in first else len(first), name))
