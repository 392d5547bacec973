"""Comparisons of a split, read from the files that the configuration names."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, replace

from logitbank.errors import TaskError, counted
from logitbank.preference import TASK, Pair, prompt_keys
from logitbank.tasks.common import UNDETERMINED
from logitbank.tasks.files import Row, open_rows
from logitbank.tasks.preference.parts import PARTS, is_held_out, part_of
from logitbank.tasks.preference.rows import TEXTS, read_comparison
from logitbank.tasks.settings import DataSettings

logger = logging.getLogger(__name__)
_said: set[str] = set()  # lines that this process has logged: a file is read more than once

HUB_DEFAULT = "lmsys/lmsys-arena-human-preference-55k"
SPLITS = ("train", "validation", "test", *PARTS)


@dataclass(frozen=True)
class ReadPairs:
    """What a file gave.

    Attributes:
        pairs: in the order of their rows.
        read: rows.
        left_out: ids of the rows without text in the prompt or an answer.
    """

    pairs: list[Pair]
    read: int
    left_out: tuple[str, ...] = ()

    @property
    def without_text(self) -> int:
        """Rows that were left out."""
        return len(self.left_out)


def load_pairs(split: str, data: DataSettings) -> list[Pair]:
    """The comparisons of a split, in the order of its file; duplicates are left as they are.

    Without a validation file, a share of the training file's prompts is the validation split.

    Args:
        split: `train`, `validation` or `test`, or a part of validation: `selection`, `calibration` or `holdout`.
        data: names the files.

    Raises:
        TaskError: no file, one that cannot be opened, or a row that is broken.
    """
    if split not in SPLITS:
        raise TaskError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if split == "test":
        return read_test(data).pairs
    if split == "train":
        return divided_training(data)[0].pairs
    validation = read_validation(data).pairs
    if split == "validation":
        return validation
    parts = part_of(prompt_keys(validation), data.preference.selection)
    return [pair for pair, part in zip(validation, parts, strict=True) if PARTS[part] == split]


def read_test(data: DataSettings) -> ReadPairs:
    """The test rows, all of them: a submission has as many; TaskError as of `load_pairs`."""
    file = data.file(TASK, "test")
    key = f"{TASK}.test"
    if file is None:
        raise TaskError(f"{key}: expected a file or hub id, got none; add {key}=FILE")
    return read_pairs(key, file, "test", data, labelled=False)


def read_validation(data: DataSettings) -> ReadPairs:
    """The validation rows, of their own file or held out of the training file; TaskError as of `load_pairs`."""
    file = data.file(TASK, "validation")
    if file is None:
        return divided_training(data)[1]
    return read_pairs(f"{TASK}.validation", file, "validation", data)


def read_training_file(data: DataSettings) -> ReadPairs:
    """All rows of the training file, those included that are held out of it; TaskError as of `load_pairs`."""
    return read_pairs(f"{TASK}.train", data.file(TASK, "train") or HUB_DEFAULT, "train", data)


def divided_training(data: DataSettings) -> tuple[ReadPairs, ReadPairs]:
    """The training rows, and those that are held out of them; TaskError as of `load_pairs`."""
    key = f"{TASK}.train"
    found = read_training_file(data)
    if data.file(TASK, "validation") is not None:
        return found, ReadPairs([], 0)
    share = data.preference.holdout
    held_out = is_held_out(prompt_keys(found.pairs), share)
    if held_out.all():
        raise TaskError(f"{key}: {TASK}.holdout={share:g} holds out all of its {len(held_out):,} rows; lower it")
    kept = [pair for pair, held in zip(found.pairs, held_out, strict=True) if not held]
    moved = (pair for pair, held in zip(found.pairs, held_out, strict=True) if held)
    apart = [replace(pair, example_id=_id("validation", pair.row_id)) for pair in moved]
    return ReadPairs(kept, found.read, found.left_out), ReadPairs(apart, len(apart))


def read_external(data: DataSettings) -> list[ReadPairs]:
    """The rows of every external file, which must have labels; TaskError as of `load_pairs`."""
    return [
        read_pairs(f"{TASK}.external", file, "external", data, prefix=f"{number}-")
        for number, file in enumerate(data.preference.external)
    ]


def read_pairs(
    key: str, file: str, split: str, data: DataSettings, *, labelled: bool = True, prefix: str = ""
) -> ReadPairs:
    """The comparisons of a file.

    Args:
        key: the configuration key that names the file, for messages.
        file: path, glob, URL or hub id.
        split: stands in the ids of the examples.
        data: where hub ids are looked for.
        labelled: whether rows must have a label; those that need none stay even without text.
        prefix: goes before the id of a row.

    Raises:
        TaskError: a file that cannot be opened, an id that occurs twice, or a row that is broken.
    """
    pairs: list[Pair] = []
    places: dict[str, str] = {}
    unseen: dict[str, set[str]] = {}
    columns: dict[str, None] = {}
    left_out: list[str] = []
    read = 0
    for row in open_rows(key, file, split="train" if split == "external" else split, mirror=data.mirror):
        read += 1
        unseen.setdefault(row.file, set(TEXTS)).difference_update(row.values)
        columns.update(dict.fromkeys(row.values))
        try:
            found = read_comparison(row.values, labelled=labelled)
            name = _name(row, read)
            if name in places:
                raise TaskError(
                    f"id: {name!r} is also used by {places[name]}; give each row its own id, or leave out the column"
                )
        except TaskError as error:
            raise TaskError(f"{key}: {row.place}: {error}") from None
        places[name] = row.place
        if labelled and not found.has_text:
            left_out.append(name)
            continue
        pairs.append(Pair(_id(split, prefix + name), *found))
    for name, lacking in unseen.items():
        if lacking:
            raise TaskError(f"{key}: {name}: expected the columns {', '.join(TEXTS)}, got {', '.join(columns)}")
    if not pairs:
        raise TaskError(f"{key}: {shlex.quote(file)}: none of its {read:,} rows has text")
    line = f"{key}: {shlex.quote(file)}: {counted(read, 'row')}"
    _say(f"{line}, {len(left_out):,} of them without text and left out" if left_out else line)
    return ReadPairs(pairs, read, tuple(left_out))


def _name(row: Row, number: int) -> str:
    """The id of a row; or, without one, its number over all files."""
    value = row.values.get("id")
    if value is None or value == "":
        return f"row-{number}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TaskError(f"id: expected text or a whole number, got {value!r}")
    name = str(value)
    if len(name.splitlines()) > 1 or any("\ud800" <= sign <= "\udfff" for sign in name):  # half a character
        raise TaskError(f"id: expected one line of text, got {value!r}")
    return name


def _id(split: str, name: str) -> str:
    return f"{TASK}/{UNDETERMINED}/{split}/{name}"


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logger.info("%s", line)
