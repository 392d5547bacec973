"""Published numbers as result rows of their own: one CSV row is one cell of one model.

Columns `task`, `lang` (or `language`), `value` and `condition` are needed; `model`, `metric`, `setting`
and `seed` are read where present. `λ=0.05` in a condition or setting becomes the row's λ.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs import ConfigError
from logitbank.experiment import CONDITION_NAME
from logitbank.storage.results import read_rows, write_rows
from logitbank.tasks import LANGUAGES, TASKS
from logitbank.tasks.scoring import classes, likelihood

LAMBDA = re.compile(r"[λ]\s*=\s*([0-9]*\.?[0-9]+)")
# How publications spell the conditions; the first that a name contains counts.
SPELLINGS = (
    ("distil", "distilled"),
    ("control", "control"),
    ("few", "fewshot"),
    ("sft", "finetuned"),
    ("fine", "finetuned"),
    ("base", "base"),
)


@dataclass(frozen=True)
class Published:
    """One published number, as a fraction, and which model and method it belongs to."""

    model: str
    condition: str
    setup: str
    lambda_distill: float | None
    seed: int | None
    task: str
    language: str
    metric: str
    value: float


def import_csv(path: Path, results: Path, *, model: str | None = None, scale: str | None = None) -> tuple[int, int]:
    """Write the numbers of a CSV file as rows of `runs` and `metrics`.

    Args:
        path: the file.
        results: result directory, created where missing.
        model: name of the model where the file has no column `model`; default the file's name.
        scale: `percent` or `fraction`; default percent where any value is above 1.

    Returns:
        How many models-under-a-condition and how many cells were written; (0, 0) where the same
        content was imported before.

    Raises:
        ConfigError: a file that cannot be read, a missing column, or a line that makes no sense.
    """
    rows = read_published(path, model=model or path.stem, scale=scale)
    content = _content_hash(rows)
    name = f"import-{re.sub(r'[^A-Za-z0-9_.+-]', '_', path.stem)}-{content}"
    if read_rows(results, "metrics", name) is not None:
        return 0, 0
    groups: dict[tuple[Any, ...], list[Published]] = {}
    for row in rows:
        key = (row.model, row.condition, row.setup, row.lambda_distill, row.seed)
        groups.setdefault(key, []).append(row)
    primary = _primary_metrics(rows)
    now = datetime.datetime.now(datetime.UTC)
    runs, metrics = [], []
    for number, own in enumerate(groups.values()):
        run = f"{name}-{number}"
        runs.append(_run_row(run, own[0], path, now))
        metrics += [_metric_row(run, row, primary) for row in own]
    if read_rows(results, "runs", name) is None:
        write_rows(results, "runs", runs, name)
    write_rows(results, "metrics", metrics, name)
    return len(groups), len(metrics)


def _content_hash(rows: Sequence[Published]) -> str:
    """Names the content of a file, as version 0.1.0 did, so that what it imported counts as imported."""
    return hashlib.sha256(repr(rows).replace("Published(", "Cell(").encode()).hexdigest()[:10]


def read_published(path: Path, *, model: str, scale: str | None) -> list[Published]:
    """The numbers of a CSV file; see `import_csv`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"import: cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    language = "language" if "language" in header else "lang"
    for column in ("condition", "task", language, "value"):
        if column not in header:
            raise ConfigError(f"import: {path} lacks the column {column!r}; it has {', '.join(header) or 'none'}")
    values = [_number(line["value"], path, number) for number, line in enumerate(lines, start=2)]
    if not values:
        raise ConfigError(f"import: {path} has a header but no rows")
    if scale is None:
        scale = "percent" if max(values) > 1 else "fraction"
    divisor = 100 if scale == "percent" else 1
    rows = []
    for number, (line, value) in enumerate(zip(lines, values, strict=True), start=2):
        if not 0 <= value <= divisor:
            raise ConfigError(f"import: {path} line {number}: value: expected 0 to {divisor} ({scale}), got {value:g}")
        rows.append(_published(line, language, value / divisor, model, path, number))
    _refuse_duplicates(rows, path)
    return rows


def _published(line: Mapping[str, str], language: str, value: float, model: str, path: Path, number: int) -> Published:
    if any(line.get(column) in (None, "") for column in ("condition", "task", language)):
        raise ConfigError(f"import: {path} line {number}: expected condition, task and {language}, but one is empty")
    if line[language] not in LANGUAGES:
        raise ConfigError(
            f"import: {path} line {number}: {language}: expected one of {', '.join(LANGUAGES)}, got {line[language]!r}"
        )
    task = line["task"]
    metric = line.get("metric") or (TASKS[task].primary_metric if task in TASKS else "")
    if not metric:
        raise ConfigError(
            f"import: {path} line {number}: has no column metric, and task {task!r} is not a built-in task"
        )
    setting = line.get("setting") or ""
    if metric in (*likelihood.LOWER_IS_BETTER, *classes.LOWER_IS_BETTER):
        raise ConfigError(f"import: {path} line {number}: metric: expected a score, a fraction or in %, got {metric}")
    found = LAMBDA.search(line["condition"]) or LAMBDA.search(setting)
    kind = setting.split(",")[0].strip()
    seed = line.get("seed")
    return Published(
        model=line.get("model") or model,
        condition=condition_name(line["condition"]),
        setup=f"published {kind}".strip(),
        lambda_distill=float(found[1]) if found else None,
        seed=int(_number(seed, path, number)) if seed else None,
        task=task,
        language=line[language],
        metric=metric,
        value=value,
    )


def condition_name(text: str) -> str:
    """One of the five conditions where the text names one (`NER-SFT`, `Few-Shot`), else the text itself."""
    plain = text.casefold()
    for part, name in SPELLINGS:
        if part in plain:
            return name
    kept = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")
    return kept if CONDITION_NAME.fullmatch(kept) else "published"


def _number(text: str | None, path: Path, number: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not value == value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"import: {path} line {number}: expected a number, got {text!r}")
    return value


def _refuse_duplicates(rows: Sequence[Published], path: Path) -> None:
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows, start=2):
        key = (
            row.model,
            row.condition,
            row.setup,
            row.lambda_distill,
            row.seed,
            row.task,
            row.language,
            row.metric,
        )
        if key in seen:
            raise ConfigError(
                f"import: {path} lines {seen[key]} and {number} describe the same cell "
                f"({row.model}, {row.condition}, {row.task}/{row.language}, {row.metric}); "
                "a column model, setting or seed would distinguish them"
            )
        seen[key] = number


def _primary_metrics(rows: Sequence[Published]) -> dict[str, str]:
    """The metric of each task that averages use: the task's own, else the first one in the file."""
    primary: dict[str, str] = {}
    for row in rows:
        own = TASKS[row.task].primary_metric if row.task in TASKS else None
        if row.metric == own or row.task not in primary:
            primary[row.task] = row.metric
    return primary


def _run_row(run: str, row: Published, path: Path, now: datetime.datetime) -> dict[str, Any]:
    return {
        "run": run,
        "kind": "import",
        "model": row.model,
        "condition": row.condition,
        "seed": row.seed,
        "lambda_distill": row.lambda_distill,
        "variant": None if row.lambda_distill is None else f"λ={row.lambda_distill:g}",
        "setup": row.setup,
        "config": json.dumps({"file": path.name}),
        "created_at": now,
    }


def _metric_row(run: str, row: Published, primary: Mapping[str, str]) -> dict[str, Any]:
    return {
        "run": run,
        "model": row.model,
        "condition": row.condition,
        "seed": row.seed,
        "task": row.task,
        "language": row.language,
        "split": "published",
        "method": "imported",
        "metric": row.metric,
        "value": row.value,
        "is_primary": row.metric == primary[row.task],
    }
