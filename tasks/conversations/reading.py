"""Conversations of a split: held out, told apart and counted as they stream by."""

from __future__ import annotations

import hashlib
import logging
import shlex
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import fsspec

from logitbank.errors import TaskError, counted
from logitbank.tasks.conversations.conversation import Conversation
from logitbank.tasks.conversations.formats import Format, read_row, recognise, with_context
from logitbank.tasks.conversations.messages import BrokenRow, UnusableRow
from logitbank.tasks.files import Row, open_rows
from logitbank.tasks.settings import DataSettings

logger = logging.getLogger(__name__)
_said: set[str] = set()  # lines that this process has logged: a file is read more than once


def read_split(task: str, split: str, data: DataSettings) -> Iterator[tuple[str, Conversation]]:
    """Ids and conversations of a split, in the order of its file; memory does not grow with them.

    Without a validation file, a share of the training file is its validation split: the conversations whose
    hash is below it, so that neither order nor what is added to the file moves any between the two.

    Args:
        task: whose files.
        split: `train`, `validation` or `test`.
        data: names the files.

    Raises:
        TaskError: no file, one that cannot be opened or has nothing to learn, or a row that is broken.
    """
    divided = split != "test" and data.file(task, "validation") is None
    key = f"{task}.{'train' if divided else split}"
    file = data.file(task, "train" if divided else split)
    if file is None:
        raise TaskError(f"{key}: expected a file or hub id, got none; add {key}=FILE")
    context = None if data.chat.context is None else _read_context(f"{task}.context", data.chat.context)
    tally = _Tally()
    for row in open_rows(key, file, split="train" if divided else split, mirror=data.mirror):
        try:
            found = _read(tally, row)
            conversation = None if found is None else found[1]
            if found is None or conversation is None:
                continue
            if context is not None:
                conversation = with_context(conversation, context)
        except BrokenRow as error:
            raise TaskError(f"{key}: {row.place}: {error}") from None
        held_out = divided and _share(conversation.digest) < data.chat.holdout
        tally.held_out += held_out
        if not divided or held_out == (split == "validation"):
            yield found[0], conversation
    tally.finish(key, file, f"{task}.holdout={data.chat.holdout:g}" if divided else None)


class _Seen:
    """Where contents and ids were first seen, on disk: a set in memory would grow with the file."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._rows.execute("PRAGMA journal_mode=OFF")
        self._rows.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._rows.execute("BEGIN")

    def earlier(self, kind: str, value: str, place: str) -> str | None:
        """The place at which a value was seen before; None the first time.

        Raises:
            TaskError: no room for it.
        """
        key = hashlib.blake2b(f"{kind}/{value}".encode(), digest_size=16).digest()
        try:
            if self._rows.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, place)).rowcount:
                return None
        except sqlite3.Error as error:
            raise TaskError(f"{place}: cannot write its hash to the temporary directory (TMPDIR): {error}") from None
        return str(self._rows.execute("SELECT place FROM seen WHERE key = ?", (key,)).fetchone()[0])


@dataclass
class _Tally:
    """What became of the rows of a split.

    Attributes:
        used: conversations, those held out included.
        held_out: of these.
        skipped: what is wrong with a row -> rows.
        duplicates: rows with the content of an earlier one.
        cut: conversations that lost messages after their last answer.
        seen: contents and ids so far.
        formats: of each file.
    """

    used: int = 0
    held_out: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    cut: int = 0
    seen: _Seen = field(default_factory=_Seen)
    formats: dict[str, Format] = field(default_factory=dict)

    def finish(self, key: str, file: str, holdout: str | None) -> None:
        """Log the counts; TaskError if nothing is left to learn."""
        parts = [f"{counted(count, 'conversation')} {why}" for why, count in sorted(self.skipped.items())]
        if self.duplicates:
            parts.append(counted(self.duplicates, "duplicate"))
        lost = f"; skipped {', '.join(parts)}" if parts else ""
        if not self.used:
            raise TaskError(f"{key}: {shlex.quote(file)} has no usable conversation{lost}")
        if holdout is not None and self.held_out == self.used:
            raise TaskError(f"{key}: {holdout} holds out all of its {counted(self.used, 'conversation')}; lower it")
        shared = f", {self.held_out:,} of them held out for validation ({holdout})" if holdout is not None else ""
        cut = f"; {counted(self.cut, 'conversation')} cut after the last assistant turn" if self.cut else ""
        _say(f"{key}: {shlex.quote(file)}: {counted(self.used, 'conversation')}{shared}{lost}{cut}")


def _read(tally: _Tally, row: Row) -> tuple[str, Conversation] | None:
    """Id and conversation of a row; None for one that is counted and skipped.

    Raises:
        BrokenRow: the row is broken.
    """
    layout = tally.formats.get(row.file)
    if layout is None:
        layout = tally.formats[row.file] = recognise(row.values.keys())
        _say(f"{row.file}: {layout.name}")
    try:
        found = read_row(layout, row.values)
    except UnusableRow as why:
        tally.skipped[str(why)] += 1
        return None
    content = found.conversation.digest_with_teacher
    name = _id_of(row.values.get("id")) or content
    if tally.seen.earlier("content", content, row.place) is not None:
        tally.duplicates += 1
        return None
    if (other := tally.seen.earlier("id", name, row.place)) is not None:
        raise BrokenRow(f"id: {name!r} is also used by {other}, a different conversation; give each its own id")
    tally.used += 1
    tally.cut += found.unanswered > 0
    return name, found.conversation


def _id_of(value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BrokenRow(f"id: expected text or a whole number, got {value!r}")
    name = str(value)
    if len(name.splitlines()) > 1 or any("\ud800" <= sign <= "\udfff" for sign in name):  # half a character
        raise BrokenRow(f"id: expected one line of text, got {value!r}")
    return name


def _share(digest: str) -> float:
    """Where a hash is between 0 and 1."""
    return int(hashlib.blake2b(f"holdout/{digest}".encode(), digest_size=6).hexdigest(), 16) / 2**48


def _read_context(key: str, file: str) -> str:
    """The text of a file."""
    try:
        with fsspec.open(file, "r", encoding="utf-8") as opened:
            text = str(opened.read()).strip()
    except UnicodeDecodeError:
        raise TaskError(f"{key}: {shlex.quote(file)}: expected UTF-8 text, got other bytes") from None
    except Exception as error:  # each kind of storage has its own family
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TaskError(f"{key}: {shlex.quote(file)} cannot be read: {reason}") from None
    if not text:
        raise TaskError(f"{key}: {shlex.quote(file)} is empty; expected the text that the teacher reads")
    return text


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logger.info("%s", line)
