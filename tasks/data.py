"""Examples from the hub or from a local mirror of it: cells, splits, random subsets, demonstrations."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from logitbank.errors import counted
from logitbank.tasks import LANGUAGES, TASKS
from logitbank.tasks.common import UNDETERMINED, Example, FileSource, ReadsFiles, Source, Task, TaskError
from logitbank.tasks.files import open_rows
from logitbank.tasks.hub import open_split
from logitbank.tasks.outside import folder_of
from logitbank.tasks.settings import DataSettings

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_reported: set[tuple[str, ...]] = set()  # what was already logged in this process of a cell
MAX_POOL = 5000  # demonstrations are drawn from at most this many rows of a split


class Cells(NamedTuple):
    """A grid of tasks and languages: the (task, language) pairs that exist and those that do not."""

    present: list[tuple[str, str]]
    absent: list[tuple[str, str]]


def cells(tasks: Sequence[str], languages: Sequence[str]) -> Cells:
    """Split a requested grid into the cells that exist and those that do not.

    A task of an undetermined language is one cell, whatever languages are requested.

    Raises:
        TaskError: an unknown task or language, or a task that exists in none of the languages.
    """
    found = Cells([], [])
    _check_languages(languages, map(get_task, tasks))
    for name in tasks:
        task = get_task(name)
        if task.languages == (UNDETERMINED,):
            found.present.append((name, UNDETERMINED))
            continue
        if not set(languages) & set(task.languages):
            raise TaskError(_no_cell(task, languages))
        for language in languages:
            (found.present if language in task.languages else found.absent).append((name, language))
    return found


def require_cell(task: str, language: str) -> None:
    """Raise `TaskError` unless the task exists in the language."""
    found = get_task(task)
    if language not in found.languages:
        _check_languages([language], [found])
        raise TaskError(_no_cell(found, [language]))


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        TaskError: there is none.
    """
    if name not in TASKS:
        raise TaskError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def get_source(task: str, source: str | None = None) -> Source:
    """The named source of a task, or its default.

    Raises:
        TaskError: there is none of that name.
    """
    sources = get_task(task).sources
    name = next(iter(sources)) if source is None else source
    if name not in sources:
        raise TaskError(f"data.sources.{task}: expected one of {', '.join(sources)}, got {name!r}")
    return sources[name]


def protocol_of(task: str, data: DataSettings) -> str | None:
    """The rules that score a task's answers, where its source names any; None for the task's own."""
    return get_source(task, data.sources.get(task)).protocol if get_task(task).sources else None


def load_examples(
    task: str,
    split: str,
    language: str,
    data: DataSettings,
    *,
    limit: int | None = None,
    limited_by: str | None = None,
) -> list[Example]:
    """Examples of one cell.

    Args:
        task: key of `tasks.TASKS`.
        split: `train`, `validation` or `test`.
        language: one of the task's languages.
        data: where they come from.
        limit: at most so many, drawn at random by the seed of `data`; a smaller limit gives the beginning of what
            a larger one gives. Default all, in the order of the data set.
        limited_by: the configuration key that `limit` comes from, for the log.

    Raises:
        TaskError: a cell, split, data set or file that does not exist, or a row that is broken.
    """
    if split not in SPLITS:
        raise TaskError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    require_cell(task, language)
    if isinstance(reader := get_task(task), ReadsFiles):
        return _from_files(reader, f"{task}/{language}/{split}", split, data, limit, limited_by)
    source = data.sources.get(task)
    origin = get_source(task, source)
    having = origin.train_languages if split == "train" else origin.eval_languages
    if language not in having:
        raise TaskError(f"{task} has no {split} split in {language!r}, only in {', '.join(having)}")
    hub = origin.hub(split, language)
    cell = f"{task}/{language}/{split}"
    if hub != get_source(task).hub(split, language):
        cell += f"@{source}"  # other rows than the default source's, so other ids
    if isinstance(hub, FileSource):
        return _from_file(get_task(task), hub, cell, split, language, data, limit)
    rows = open_split(hub, data.mirror)
    order = range(len(rows)) if limit is None else _random_order(len(rows), f"{data.seed}/{cell}")
    labels = _label_names(rows)
    examples: list[Example] = []
    unusable: list[int] = []
    for index in order:
        if limit is not None and len(examples) >= limit:
            break
        row = _Row(_with_label_names(rows[index], labels))
        example = _to_example(get_task(task), row, language, f"{cell}/{index}", f"{hub}, row {index}")
        if example is None:
            unusable.append(index)
        else:
            examples.append(example)
    if not examples and unusable:
        raise TaskError(f"{hub}: none of its {len(rows):,} rows has the text, label or answer that {task} needs")
    _report_unusable(cell, unusable, str(hub))
    return examples


def _from_file(
    task: Task, source: FileSource, cell: str, split: str, language: str, data: DataSettings, limit: int | None
) -> list[Example]:
    """Examples of one's own file, in its order; of a limit, those whose rows come first in an order of the seed's."""
    file = source.path if "://" in source.path else str(folder_of(task) / Path(source.path).expanduser())
    unusable: list[int] = []
    lacking: list[TaskError] = []

    def numbered() -> Iterator[tuple[int, Example]]:
        for index, row in enumerate(open_rows(task.name, file, split=split, mirror=data.mirror)):
            try:
                example = _to_example(task, _Row(row.values), language, f"{cell}/{index}", row.place)
            except _ColumnError as error:  # JSON leaves out what is null
                lacking.append(error)
                example = None
            if example is None:
                unusable.append(row.number)
            else:
                yield index, example

    if limit is None:
        found = list(numbered())
    else:
        found = heapq.nsmallest(limit, numbered(), key=lambda item: _rank(f"{data.seed}/{cell}/{item[0]}"))
    if not found and lacking:
        raise lacking[0]
    if not found:
        raise TaskError(f"{source}: none of its {len(unusable):,} rows has the text, label or answer of {task.name}")
    _report_unusable(cell, unusable, str(source))
    return [example for _, example in found]


def _from_files(
    task: ReadsFiles, cell: str, split: str, data: DataSettings, limit: int | None, limited_by: str | None
) -> list[Example]:
    """Examples that a task reads itself; of a limit, those whose content comes first in an order made by the seed."""
    examples = task.examples(split, data)
    if limit is None:
        return list(examples)
    total = itertools.count()
    drawn = heapq.nsmallest(
        limit,
        (example for example, _ in zip(examples, total, strict=False)),
        key=lambda example: _rank(f"{data.seed}/{task.content_key(example)}"),
    )
    read = next(total)
    if read > limit and limited_by is not None and (cell, limited_by) not in _reported:
        _reported.add((cell, limited_by))
        logger.info("%s: took %s of %s (%s)", cell, f"{limit:,}", counted(read, "example"), limited_by)
    return drawn


def training_examples(
    task: str,
    languages: Sequence[str],
    data: DataSettings,
    *,
    train_languages: str = "english",
    limit: int | None = None,
    limited_by: str | None = None,
) -> list[Example]:
    """Training examples of one task, at most `limit` over all languages together.

    Args:
        task: key of `tasks.TASKS`.
        languages: those that are evaluated; with `in_language` also those that are trained on.
        train_languages: `english`, or `in_language`: the languages' own training splits, each an equal
            share where it has the rows, and English for the languages that have none. A task without English
            training data is trained in its own languages either way.
        data: where they come from.
        limit: at most so many, drawn at random by the seed of `data`; default all.
        limited_by: the configuration key that `limit` comes from, for the log.

    Raises:
        TaskError: the task exists in none of the languages, or a data set does not exist.
    """
    requested = [language for _, language in cells([task], languages).present]
    if requested == [UNDETERMINED]:
        return load_examples(task, "train", UNDETERMINED, data, limit=limit, limited_by=limited_by)
    own = get_source(task, data.sources.get(task)).train_languages
    if train_languages not in ("english", "in_language"):
        raise TaskError(f"data.train_languages: expected one of english, in_language, got {train_languages!r}")
    if train_languages == "english" and "en" in own:
        chosen = ["en"]
    else:
        found = (language if language in own else "en" for language in requested)
        chosen = [language for language in dict.fromkeys(found) if language in own]
    if not chosen:
        raise TaskError(f"languages: {task} has no training data in {', '.join(requested)}, only in {', '.join(own)}")
    per_language = [load_examples(task, "train", language, data, limit=limit) for language in chosen]
    if limit is None:
        return [example for examples in per_language for example in examples]
    shares = _shares([len(examples) for examples in per_language], limit)
    return [example for examples, share in zip(per_language, shares, strict=True) for example in examples[:share]]


def demonstration_pool(task: str, language: str, data: DataSettings, *, stage: str) -> list[Example]:
    """The examples that demonstrations for one cell are drawn from, at most `MAX_POOL` of them.

    Args:
        task: key of `tasks.TASKS`.
        language: the query's language.
        data: where they come from; its seed does not matter.
        stage: `train` for the teacher stage: the language's training split, or where it has none English
            training, or that of the task's first language; `eval` for evaluation: the language's validation
            split, or the training split where the data set has no validation. Training conversations for both
            where a task reads files.

    Raises:
        TaskError: a cell, stage or data set that does not exist.
    """
    require_cell(task, language)
    if stage not in ("train", "eval"):
        raise TaskError(f"stage: expected one of train, eval, got {stage!r}")
    unseeded = dataclasses.replace(data, seed=0)
    if isinstance(get_task(task), ReadsFiles):
        return load_examples(task, "train", language, unseeded, limit=MAX_POOL)
    origin = get_source(task, data.sources.get(task))
    if stage == "train":
        own = origin.train_languages
        split, pool_language = "train", next((name for name in (language, "en") if name in own), own[0])
    else:
        split, pool_language = origin.eval_demonstrations, language
    return load_examples(task, split, pool_language, unseeded, limit=MAX_POOL)


class _ColumnError(TaskError):
    """A row without a column that a task asked for."""


class _NoColumn(KeyError):
    """A task asked for a column that the data set has not."""


class _NoValue(KeyError):
    """A task asked for a value that the row has not."""


class _Row(Mapping[str, Any]):
    """A row that tells a missing column from a missing value; `get` gives its default for both."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, column: str) -> Any:
        if column not in self._values:
            raise _NoColumn(column)
        if _lacks_value(self._values[column]):
            raise _NoValue(column)
        return self._values[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _lacks_value(value: Any) -> bool:
    """Whether it is None, or a list or mapping that holds None."""
    if isinstance(value, Mapping):
        return any(map(_lacks_value, value.values()))
    return value is None or (isinstance(value, list) and any(map(_lacks_value, value)))


def _to_example(task: Task, row: _Row, language: str, example_id: str, place: str) -> Example | None:
    """The example of a row, None where it lacks something; `place` names the row in errors."""
    try:
        return task.to_example(row, language, example_id)
    except _NoValue:
        return None
    except _NoColumn as error:
        raise _ColumnError(f"{place}: expected a column {error}, got {', '.join(row)}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaskError(
            f"{place}: {task.name} cannot read it: {type(error).__name__}: {error}; compare the columns with the task"
        ) from error


def _report_unusable(cell: str, unusable: Sequence[int], where: str) -> None:
    """Say once which rows were left out."""
    if unusable and (cell,) not in _reported:
        _reported.add((cell,))
        logger.info("%s: skipped %s without text, label or answer: %s", cell, _count_rows(unusable), where)


def _count_rows(indices: Sequence[int]) -> str:
    """`1 row (17)`, `5 rows (3, 17, 20 …)`."""
    first = ", ".join(map(str, sorted(indices)[:3])) + (" …" if len(indices) > 3 else "")
    return f"{len(indices):,} row{'s' if len(indices) > 1 else ''} ({first})"


def _shares(available: Sequence[int], total: int) -> list[int]:
    """Split `total` as evenly as the available counts allow; what one lacks goes to the others."""
    shares = [0] * len(available)
    left = total
    for position, index in enumerate(sorted(range(len(available)), key=lambda index: available[index])):
        remaining = len(available) - position
        shares[index] = min(available[index], -(-left // remaining))
        left -= shares[index]
    return shares


def _random_order(count: int, key: str) -> list[int]:
    """A permutation that depends on the key alone: not on process, platform or library versions."""
    return sorted(range(count), key=lambda index: _rank(f"{key}/{index}"))


def _rank(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def _label_names(rows: Any) -> dict[str, list[str]]:
    """Columns that hold class labels, or lists of them, with the names of their classes."""
    found = {}
    for column, feature in rows.features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[column] = list(names)
    return found


def _with_label_names(row: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The row with its class labels as names; -1, the hub's missing label, stays."""
    named = dict(row)
    for column, names in labels.items():
        value = row[column]
        if isinstance(value, list):
            named[column] = [_class_name(item, names) for item in value]
        else:
            named[column] = _class_name(value, names)
    return named


def _class_name(value: Any, names: Sequence[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _check_languages(languages: Sequence[str], tasks: Iterable[Task]) -> None:
    """Raise `TaskError` for a language that is neither the study's nor a task's own."""
    known = dict.fromkeys([*LANGUAGES, *(language for task in tasks for language in task.languages)])
    for language in languages:
        if language not in known:
            raise TaskError(f"language: expected one of {', '.join(known)}, got {language!r}")


def _no_cell(task: Task, languages: Sequence[str]) -> str:
    wanted = ", ".join(languages)
    return f"languages: {task.name} does not exist in {wanted}; its languages are {', '.join(task.languages)}"
