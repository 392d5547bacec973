"""Examples from the hub or from a local mirror of it: cells, splits, random subsets, demonstrations."""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import counted
from logitbank.tasks import LANGUAGES, TASKS
from logitbank.tasks.common import UNDETERMINED, Example, FileSource, ReadsFiles, Source, Task, TaskError
from logitbank.tasks.files import open_rows
from logitbank.tasks.hub import open_split
from logitbank.tasks.outside import folder_of
from logitbank.tasks.rows import ColumnError, Row, Unusable, example_of, label_names, with_label_names
from logitbank.tasks.settings import DataSettings
from logitbank.tasks.spool import Keeper, Shelf
from logitbank.tasks.subsets import Drawn, random_order, rank

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
    """Examples of one cell, in memory; see `draw_examples`."""
    shelf = Shelf()
    drawn = draw_examples(task, split, language, data, shelf, limit=limit, limited_by=limited_by)
    return [shelf[position] for position in drawn.tolist()]


def draw_examples(
    task: str,
    split: str,
    language: str,
    data: DataSettings,
    into: Keeper,
    *,
    limit: int | None = None,
    limited_by: str | None = None,
) -> NDArray[np.int64]:
    """Read one cell, one example at a time.

    Args:
        task: key of `tasks.TASKS`.
        split: `train`, `validation` or `test`.
        language: one of the task's languages.
        data: where they come from.
        into: takes the examples, with a limit some more than that, in the order in which they are read.
        limit: at most so many, drawn at random by the seed of `data`; a smaller limit gives the beginning of what
            a larger one gives. Default all, in the order of the data set.
        limited_by: the configuration key that `limit` comes from, for the log.

    Returns:
        Where the cell's examples are in `into`, in their order.

    Raises:
        TaskError: a cell, split, data set or file that does not exist, or a row that is broken.
    """
    if split not in SPLITS:
        raise TaskError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    require_cell(task, language)
    if isinstance(reader := get_task(task), ReadsFiles):
        return _from_files(reader, f"{task}/{language}/{split}", split, data, into, limit, limited_by)
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
        return _from_file(get_task(task), hub, cell, split, language, data, into, limit)
    rows = open_split(hub, data.mirror)
    order = range(len(rows)) if limit is None else random_order(len(rows), f"{data.seed}/{cell}")
    labels = label_names(rows)
    found, unusable = array("q"), Unusable()
    for index in map(int, order):
        if limit is not None and len(found) >= limit:
            break
        row = Row(with_label_names(rows[index], labels))
        example = example_of(get_task(task), row, language, f"{cell}/{index}", f"{hub}, row {index}")
        if example is None:
            unusable.add(index)
        else:
            found.append(into.add(example))
    if not found and unusable.count:
        raise TaskError(f"{hub}: none of its {len(rows):,} rows has the text, label or answer that {task} needs")
    _report_unusable(cell, unusable, str(hub))
    return np.array(found, dtype=np.int64)


def _from_file(
    task: Task,
    source: FileSource,
    cell: str,
    split: str,
    language: str,
    data: DataSettings,
    into: Keeper,
    limit: int | None,
) -> NDArray[np.int64]:
    """Examples of one's own file, in its order; of a limit, those whose rows come first in an order of the seed's."""
    file = source.path if "://" in source.path else str(folder_of(task) / Path(source.path).expanduser())
    unusable = Unusable()
    lacking: TaskError | None = None

    def numbered() -> Iterator[tuple[str, Example]]:
        nonlocal lacking
        for index, row in enumerate(open_rows(task.name, file, split=split, mirror=data.mirror)):
            try:
                example = example_of(task, Row(row.values), language, f"{cell}/{index}", row.place)
            except ColumnError as error:  # JSON leaves out what is null
                lacking = lacking or error
                example = None
            if example is None:
                unusable.add(row.number)
            else:
                yield f"{data.seed}/{cell}/{index}", example

    found, _ = _draw(numbered(), into, limit)
    if not len(found) and lacking is not None:
        raise lacking
    if not len(found):
        raise TaskError(f"{source}: none of its {unusable.count:,} rows has the text, label or answer of {task.name}")
    _report_unusable(cell, unusable, str(source))
    return found


def _from_files(
    task: ReadsFiles,
    cell: str,
    split: str,
    data: DataSettings,
    into: Keeper,
    limit: int | None,
    limited_by: str | None,
) -> NDArray[np.int64]:
    """Examples that a task reads itself; of a limit, those whose content comes first in an order made by the seed."""
    keyed = (
        ("" if limit is None else f"{data.seed}/{task.content_key(example)}", example)
        for example in task.examples(split, data)
    )
    found, read = _draw(keyed, into, limit)
    if limit is not None and read > limit and limited_by is not None and (cell, limited_by) not in _reported:
        _reported.add((cell, limited_by))
        logger.info("%s: took %s of %s (%s)", cell, f"{limit:,}", counted(read, "example"), limited_by)
    return found


def _draw(keyed: Iterator[tuple[str, Example]], into: Keeper, limit: int | None) -> tuple[NDArray[np.int64], int]:
    """Where those of a stream went that a limit leaves, by the rank of their keys; and how many there were."""
    if limit is None:
        found = np.array(array("q", (into.add(example) for _, example in keyed)), dtype=np.int64)
        return found, len(found)
    drawn, read = Drawn(limit), 0
    for key, example in keyed:
        read += 1
        if drawn.wants(place := rank(key)):
            drawn.add(place, into.add(example))
    return drawn.positions(), read


def training_examples(
    task: str,
    languages: Sequence[str],
    data: DataSettings,
    *,
    train_languages: str = "english",
    limit: int | None = None,
    limited_by: str | None = None,
) -> list[Example]:
    """Training examples of one task, in memory; see `draw_training_examples`."""
    shelf = Shelf()
    drawn = draw_training_examples(
        task, languages, data, shelf, train_languages=train_languages, limit=limit, limited_by=limited_by
    )
    return [shelf[position] for position in drawn.tolist()]


def draw_training_examples(
    task: str,
    languages: Sequence[str],
    data: DataSettings,
    into: Keeper,
    *,
    train_languages: str = "english",
    limit: int | None = None,
    limited_by: str | None = None,
) -> NDArray[np.int64]:
    """Read the training examples of one task, at most `limit` over all languages together.

    Args:
        task: key of `tasks.TASKS`.
        languages: those that are evaluated; with `in_language` also those that are trained on.
        train_languages: `english`, or `in_language`: the languages' own training splits, each an equal
            share where it has the rows, and English for the languages that have none. A task without English
            training data is trained in its own languages either way.
        data: where they come from.
        into: takes the examples; see `draw_examples`.
        limit: at most so many, drawn at random by the seed of `data`; default all.
        limited_by: the configuration key that `limit` comes from, for the log.

    Returns:
        Where they are in `into`, language after language.

    Raises:
        TaskError: the task exists in none of the languages, or a data set does not exist.
    """
    requested = [language for _, language in cells([task], languages).present]
    if requested == [UNDETERMINED]:
        return draw_examples(task, "train", UNDETERMINED, data, into, limit=limit, limited_by=limited_by)
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
    per_language = [draw_examples(task, "train", language, data, into, limit=limit) for language in chosen]
    if limit is not None:
        shares = _shares([len(drawn) for drawn in per_language], limit)
        per_language = [drawn[:share] for drawn, share in zip(per_language, shares, strict=True)]
    return np.concatenate(per_language)


def demonstration_pool(task: str, language: str, data: DataSettings, *, stage: str) -> list[Example]:
    """The examples that demonstrations for one cell are drawn from, at most `MAX_POOL` of them.

    Args:
        task: key of `tasks.TASKS`.
        language: the query's language.
        data: where they come from; its seed does not matter.
        stage: `train` for the teacher stage: the language's training split, otherwise
            English training, or that of the task's first language; `eval` for evaluation: the language's validation
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


def _report_unusable(cell: str, unusable: Unusable, where: str) -> None:
    """Say once which rows were left out."""
    if unusable.count and (cell,) not in _reported:
        _reported.add((cell,))
        logger.info("%s: skipped %s without text, label or answer: %s", cell, unusable, where)


def _shares(available: Sequence[int], total: int) -> list[int]:
    """Split `total` as evenly as the available counts allow; what one lacks goes to the others."""
    shares = [0] * len(available)
    left = total
    for position, index in enumerate(sorted(range(len(available)), key=lambda index: available[index])):
        remaining = len(available) - position
        shares[index] = min(available[index], -(-left // remaining))
        left -= shares[index]
    return shares


def _check_languages(languages: Sequence[str], tasks: Iterable[Task]) -> None:
    """Raise `TaskError` for a language that is neither the study's nor a task's own."""
    known = dict.fromkeys([*LANGUAGES, *(language for task in tasks for language in task.languages)])
    for language in languages:
        if language not in known:
            raise TaskError(f"language: expected one of {', '.join(known)}, got {language!r}")


def _no_cell(task: Task, languages: Sequence[str]) -> str:
    wanted = ", ".join(languages)
    return f"languages: {task.name} does not exist in {wanted}; its languages are {', '.join(task.languages)}"
