"""Views over scores against plain loops, on results drawn at random: seeds, steps, cells missing; runs repeated."""

from __future__ import annotations

import datetime
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from logitbank.storage.results import Catalogue, write_rows

GRID = {"nli": ("en", "hi", "de", "zh"), "qa": ("en", "hi"), "pa": ("de", "zh", "en")}
STUDENTS = {"finetuned": (None, (None,)), "distilled": ("fewshot", (0.1, 0.5)), "control": ("zeroshot", (0.1, 0.5))}
STEPS = (500, 1000)
TOLD = ("demonstrations", "demonstrations_wanted", "cut_short")
GAPS = (("distilled", "finetuned"), ("control", "finetuned"), ("distilled", "control"))

Series = tuple[str, float | None]  # condition, λ
Cell = tuple[str, str]  # task, language
Key = tuple[Any, ...]
Loop = Callable[["World"], dict[Key, tuple[Any, ...]]]


@dataclass
class World:
    """What the views should say, by plain loops over `scores`.

    Attributes:
        scores: (series, seed, step) -> cell -> value of the primary metric, of the newest run.
    """

    scores: dict[tuple[Series, int, int], dict[Cell, float]] = field(default_factory=dict)

    def last_step(self, series: Series) -> int:
        return max(step for other, _, step in self.scores if other == series)

    def cells(self) -> dict[tuple[Series, Cell], list[float]]:
        """Values by seed at the last step of each series."""
        found: dict[tuple[Series, Cell], list[float]] = defaultdict(list)
        for (series, _, step), values in self.scores.items():
            if step == self.last_step(series):
                for cell, value in values.items():
                    found[series, cell].append(value)
        return found

    def tasks(self) -> dict[tuple[Series, str], list[list[float]]]:
        """Values by language, by seed."""
        found: dict[tuple[Series, str], list[list[float]]] = defaultdict(list)
        for (series, (task, _)), values in self.cells().items():
            found[series, task].append(values)
        return found

    def gaps(self) -> dict[tuple[str, Series, Series, Cell], tuple[float, int]]:
        """Difference and fewer seeds, by gap, both series and cell."""
        found = {}
        cells = self.cells()
        for (a, cell), left in cells.items():
            for (b, other), right in cells.items():
                same_step = self.last_step(a) == self.last_step(b)
                if cell == other and (a[0], b[0]) in GAPS and same_step and (b[1] is None or a[1] == b[1]):
                    difference = statistics.mean(left) - statistics.mean(right)
                    found[f"{a[0]}-{b[0]}", a, b, cell] = (difference, min(len(left), len(right)))
        return found

    def task_gaps(self) -> dict[tuple[str, Series, Series, str], list[tuple[float, int]]]:
        """The same by task: one of each language."""
        found: dict[tuple[str, Series, Series, str], list[tuple[float, int]]] = defaultdict(list)
        for (gap, a, b, (task, _)), value in self.gaps().items():
            found[gap, a, b, task].append(value)
        return found


def draw(results: Path, seed: int) -> World:
    """Write runs and metrics, and say what they are."""
    rng, world = random.Random(seed), World()
    drawn = [
        (condition, view, strength, number, step)
        for condition, (view, strengths) in STUDENTS.items()
        for strength in strengths
        for number in (1, 2, 3)
        for step in STEPS
        if rng.random() < 0.8
    ]
    for condition, view, strength, number, step in drawn:
        for again in range(rng.choice((1, 1, 2))):
            cells = [(task, language) for task in GRID for language in GRID[task] if rng.random() < 0.85]
            values = {cell: rng.random() for cell in cells}
            write(results, f"{condition}-{strength}-{number}-{step}-{again}", view, strength, values, again,
                  {"condition": condition, "seed": number, "step": step})  # fmt: skip
        world.scores[(condition, strength), number, step] = values
    whole = {(task, language): 0.5 for task in GRID for language in GRID[task]}
    write(results, "published", None, None, whole, 0, {"condition": "base", "seed": None, "step": None})
    return world


def write(
    results: Path, name: str, view: str | None, strength: float | None, values: Mapping[Cell, float], again: int,
    about: Mapping[str, Any],
) -> None:  # fmt: skip
    """One evaluation; `again` makes it newer."""
    identity = {"run": name, "model": "m", **about}
    taught = {"view": view, "view_fingerprint": view, "teacher": "t", "top_k": 64, "store_fingerprint": "a"}
    trained = {"setup": "s", "training_run": f"t-{name}", "training_set": "d", "max_steps": max(STEPS)}
    if view is not None:
        trained |= {**taught, "variant": f"λ={strength}", "lambda_distill": strength, "strategy": "fixed"}
    created = datetime.datetime(2026, 1, 2 - again, tzinfo=datetime.UTC) + again * datetime.timedelta(days=5)
    run = {**identity, "kind": "evaluation", **(trained if about["seed"] else {}), "created_at": created}
    write_rows(results, "runs", [run], name)
    where = {"split": "test", "method": "generate", "examples_hash": "e"}
    rows = [
        {
            **identity,
            **where,
            "task": task,
            "language": language,
            "metric": metric,
            "value": each,
            "is_primary": primary,
            **told(value),
        }
        for (task, language), value in values.items()
        for metric, primary, each in (("accuracy", True, value), ("parse_failure", False, 1 - value))
    ]
    write_rows(results, "metrics", rows, name)


def told(value: float) -> dict[str, float]:
    """What else a cell's row says: functions of its value, so that loops over values can tell what views make of it."""
    wanted = 20 * value
    return {
        "examples": 100 + round(900 * value),
        "demonstrations": wanted / 2,
        "demonstrations_wanted": wanted,
        "cut_short": value / 4,
    }


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def cells(world: World) -> dict[Key, tuple[Any, ...]]:
    return {
        (*series, *cell): (
            mean(values),
            len(values),
            statistics.stdev(values) if len(values) > 1 else None,
            min(told(value)["examples"] for value in values),
            *(told(mean(values))[name] for name in TOLD),
        )
        for (series, cell), values in world.cells().items()
    }


def task_averages(world: World) -> dict[Key, tuple[Any, ...]]:
    return {
        (*series, task): (
            mean(map(mean, languages)), len(languages), len(GRID[task]),
            max(map(len, languages)), min(map(len, languages)),
            *(told(mean(map(mean, languages)))[name] for name in TOLD),
        )
        for (series, task), languages in world.tasks().items()
    }  # fmt: skip


def averages(world: World) -> dict[Key, tuple[Any, ...]]:
    found: dict[Key, tuple[Any, ...]] = {}
    for series in {series for series, _ in world.cells()}:
        by_cell = [mean(values) for (other, _), values in world.cells().items() if other == series]
        tasks = [languages for (other, _), languages in world.tasks().items() if other == series]
        seeds = [len(values) for languages in tasks for values in languages]
        task_mean = mean(mean(map(mean, languages)) for languages in tasks)
        sizes = (len(tasks), len(GRID), len(by_cell), sum(map(len, GRID.values())), max(seeds), min(seeds))
        found[series] = (task_mean, mean(by_cell), *sizes, world.last_step(series))
    return found


def gaps(world: World) -> dict[Key, tuple[Any, ...]]:
    return {(gap, *a, *b, *cell): value for (gap, a, b, cell), value in world.gaps().items()}


def task_gaps(world: World) -> dict[Key, tuple[Any, ...]]:
    return {
        (gap, *a, *b, task): (mean(d for d, _ in values), len(values), len(GRID[task]), min(n for _, n in values))
        for (gap, a, b, task), values in world.task_gaps().items()
    }


def transfer_gaps(world: World) -> dict[Key, tuple[Any, ...]]:
    found: dict[Key, tuple[Any, ...]] = {}
    for series, task in world.tasks():
        values = {
            language: mean(v) for (other, (t, language)), v in world.cells().items() if (other, t) == (series, task)
        }
        rest = [value for language, value in values.items() if language != "en"]
        english, others = values.get("en"), mean(rest) if rest else None
        difference = None if english is None or others is None else english - others
        found[*series, task] = (english, others, difference, len(rest))
    return found


def checkpoint_curves(world: World) -> dict[Key, tuple[Any, ...]]:
    points: dict[Key, list[tuple[str, int, float]]] = defaultdict(list)
    for (series, seed, step), values in world.scores.items():
        for (task, language), value in values.items():
            points[*series, task, step].append((language, seed, value))
    return {
        (*key[:2], *key[2:]): (
            mean(value for *_, value in rows), len({language for language, *_ in rows}), len(GRID[key[2]]),
            len({seed for _, seed, _ in rows}),
        )
        for key, rows in points.items()
    }  # fmt: skip


def lambda_sweep(world: World) -> dict[Key, tuple[Any, ...]]:
    found: dict[Key, tuple[Any, ...]] = {}
    for (series, task), languages in world.tasks().items():
        if series[0] != "finetuned":
            of_gap = world.task_gaps().get((f"{series[0]}-finetuned", series, ("finetuned", None), task))
            compared = (mean(d for d, _ in of_gap), len(of_gap)) if of_gap else (None, None)
            seeds = max(map(len, languages))
            found[*series, task] = (mean(map(mean, languages)), len(languages), len(GRID[task]), seeds, *compared)
    return found


SERIES, TRAINED = (
    "condition, try_cast(substr(variant, 3) AS DOUBLE) AS strength",
    "seeds > 0 AND is_primary AND condition <> 'base'",
)
BOTH = "gap, minuend, lambda_distill, subtrahend, CASE WHEN subtrahend_variant <> '' THEN lambda_distill END AS other"
AS_TOLD = ", ".join(TOLD)
# view -> columns of its key, columns of its values, which rows, and the loops
CASES: dict[str, tuple[str, str, str, Loop]] = {
    "cells": (f"{SERIES}, task, language", f"value, seeds, seed_deviation, examples, {AS_TOLD}", TRAINED, cells),
    "task_averages": (
        f"{SERIES}, task",
        f"language_mean, languages, expected_languages, seeds, fewest_seeds, {AS_TOLD}",
        TRAINED,
        task_averages,
    ),
    "averages": (
        SERIES,
        "task_mean, task_language_mean, tasks, expected_tasks, cells, expected_cells, seeds, fewest_seeds, step",
        "condition <> 'base'",
        averages,
    ),
    "gaps": (f"{BOTH}, task, language", "difference, seeds", "is_primary", gaps),
    "task_gaps": (f"{BOTH}, task", "difference, languages, expected_languages, seeds", "is_primary", task_gaps),
    "transfer_gaps": (
        f"{SERIES}, task",
        "english, other_languages, transfer_gap, languages",
        "condition <> 'base'",
        transfer_gaps,
    ),
    "checkpoint_curves": (
        f"{SERIES}, task, step",
        "language_mean, languages, expected_languages, seeds",
        "true",
        checkpoint_curves,
    ),
    "lambda_sweep": (
        f"{SERIES}, task",
        "language_mean, languages, expected_languages, seeds, difference_to_finetuned, compared_languages",
        "true",
        lambda_sweep,
    ),
}


@pytest.fixture(scope="module", params=[1, 2])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, World]:
    folder = tmp_path_factory.mktemp("results")
    world = draw(folder, request.param)
    return Catalogue([folder]), world


@pytest.mark.parametrize("view", CASES)
def test_a_view_is_what_plain_loops_say(results: tuple[Catalogue, World], view: str) -> None:
    catalogue, world = results
    key, values, which, loops = CASES[view]
    size = len(catalogue.rows(f"SELECT {key} FROM {view} LIMIT 1")[0])
    rows = [tuple(row.values()) for row in catalogue.rows(f"SELECT {key}, {values} FROM {view} WHERE {which}")]
    expected = loops(world)
    assert len(rows) == len(expected)
    assert {row[:size] for row in rows} == set(expected)
    for row in rows:
        assert row[size:] == pytest.approx(expected[row[:size]], abs=1e-12), row[:size]


def test_a_training_that_has_not_ended_shows_its_last_values(tmp_path: Path) -> None:
    about = {"run": "r", "model": "m", "condition": "distilled", "view": "fewshot", "seed": 1, "task": "all"}
    log = [{**about, "step": step, "metric": "loss", "value": 1.0 / step} for step in (10, 20, 30)]
    write_rows(tmp_path, "training_log", log, "r")
    rows = Catalogue([tmp_path]).rows("SELECT run, step, metric, value, strategy FROM training_ends")
    assert rows == [{"run": "r", "step": 30, "metric": "loss", "value": 1 / 30, "strategy": None}]
