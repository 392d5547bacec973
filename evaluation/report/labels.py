"""What rows and columns of tables are called, and in which order they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.experiment import CONDITIONS
from logitbank.tasks import LANGUAGES, TASKS

PUBLISHED = "published"  # how the setup of imported numbers begins
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
        models = short_names(row["model"] for row in rows)
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
            parts.append(setup_label(row["setup"]))
        return ", ".join(parts)

    def row(self, row: Row) -> str:
        """Label of a row whose table fixes the condition."""
        detail = self.detail(row)
        return self.models[row["model"]] + (f" ({detail})" if detail else "")

    def column(self, row: Row) -> str:
        """Label of a column whose row fixes the model."""
        detail = self.detail(row)
        return row["condition"] + (f" ({detail})" if detail else "")

    def series(self, row: Row) -> str:
        """Label where neither is fixed."""
        return f"{self.models[row['model']]} {self.column(row)}"


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
    imported = [other for other in rows if other["model"] == row["model"] and other["setup"].startswith(PUBLISHED)]
    variants: dict[tuple[str, str], set[str]] = {}
    for other in imported:
        variants.setdefault((other["setup"], other["condition"]), set()).add(other["variant"])
    swept = {key for key, found in variants.items() if len(found) > 1}
    return (row["setup"], row["condition"]) in swept or (row["setup"] != PUBLISHED and bool(swept))


def setup_label(setup: str) -> str:
    """Published numbers say what they are; a hash of settings is cut short."""
    return setup if setup.startswith(PUBLISHED) else f"setup {setup[:6]}"


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
    """Column labels of the given rows, by condition."""
    order = ordered_conditions(row["condition"] for row in rows)
    keyed = {labels.column(row): (order.index(row["condition"]), labels.column(row)) for row in rows}
    return sorted(keyed, key=lambda column: keyed[column])


def ordered_models(rows: Iterable[Row]) -> list[str]:
    """Names of models, sorted."""
    return sorted({row["model"] for row in rows})


def key_of(row: Row) -> tuple[str, ...]:
    """Model, condition, setup and variant of a row."""
    return tuple(row[name] for name in KEY)


def _ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (first.index(name) if name in first else len(first), name))
