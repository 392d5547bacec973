"""Answers that a model wrote to training examples: the file they lie in, and the sequences they become.

A file has a line of JSON for each prompt: `{"id": …, "answers": […]}`. An answer is a text, or an object with `text`,
`token_ids` and `finish_reason`. The record beside it (`FILE.json`) says which model wrote them, and how.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.errors import TaskError
from logitbank.sequences import AnsweredSequence
from logitbank.tasks.common import Example, Task
from logitbank.tasks.encoded import StudentSequence
from logitbank.tasks.encoding import ExampleEncoder
from logitbank.tasks.prompts import PromptEncoder

STOP, LENGTH = "stop", "length"  # finish reasons, as OpenAI and vLLM spell them
_BUFFERED = 1 << 20  # bytes


@dataclass(frozen=True)
class GivenAnswer:
    """One answer of a file.

    Attributes:
        text: without the token that ends it.
        token_ids: as the model wrote them, the token that ends the answer included; None if the file has no ids.
        cut_short: it ended at a limit of tokens, so no token ends it.
    """

    text: str
    token_ids: tuple[int, ...] | None
    cut_short: bool


class AnswersFile:
    """A file of answers, whose lines are read when they are asked for.

    Attributes:
        path: of the file.
        record: which model wrote the answers, and how; None if nothing says so.
        digest: hash of all lines, whatever their order.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file once, to find and check its lines.

        Raises:
            TaskError: no such file, a line that is not an answer, or an id that occurs twice.
        """
        self.path = Path(path)
        self._places: dict[str, tuple[int, int]] = {}  # id -> line number, where it begins
        digest = 0
        for number, start, line in self._lines():
            name, answers = _read(self._place(number), line)
            if name in self._places:
                raise TaskError(
                    f"{self._place(number)}: id {name!r} is in line {self._places[name][0]} already; give one line "
                    "all answers to a prompt"
                )
            self._places[name] = number, start
            digest ^= int.from_bytes(hashlib.blake2b(_as_json([name, answers]), digest_size=16).digest(), "little")
        if not self._places:
            raise TaskError(
                f"--answers: {shlex.quote(str(self.path))} has no lines; expected an id and answers on each"
            )
        self.record = read_record(self.path)
        self.digest = hashlib.blake2b(
            digest.to_bytes(16, "little") + _as_json(self.record and dict(self.record)), digest_size=16
        ).hexdigest()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def answers(self, name: str) -> list[GivenAnswer]:
        """The answers to a prompt; none if its line says so.

        Raises:
            TaskError: the file has no line for it.
        """
        if name not in self._places:
            raise TaskError(
                f"--answers: {shlex.quote(str(self.path))} has no line for {name}; add one, with "
                '"answers": [] to leave the example out'
            )
        number, start = self._places[name]
        with self.path.open("rb") as file:
            file.seek(start)
            return _read(self._place(number), file.readline())[1]

    def place(self, name: str) -> str:
        """Where a prompt's line is, for messages."""
        return self._place(self._places[name][0])

    def require_examples(self, names: set[str]) -> None:
        """Raise `TaskError` for an id that is neither one of these, nor that of a turn of one."""
        for name in self:
            if name not in names and name.rpartition("#")[0] not in names:
                raise TaskError(
                    f"{self.place(name)}: id {name!r} is not an example of this build; expected the ids that "
                    "sample-answers writes with the same data, tasks and limits"
                )

    def _place(self, number: int) -> str:
        return f"--answers: {shlex.quote(str(self.path))}, line {number}"

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Number from 1, place and bytes of every line that is not blank."""
        start = 0
        try:
            with self.path.open("rb", buffering=_BUFFERED) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, start, line
                    start += len(line)
        except OSError as error:
            raise TaskError(
                f"--answers: {shlex.quote(str(self.path))} cannot be read: {error.strerror}; expected a file of "
                "answers that sample-answers or you wrote"
            ) from None


class AnsweredExamples:
    """Turns examples with answers of a file into what students learn from."""

    def __init__(self, file: AnswersFile, encoding: ExampleEncoder) -> None:
        """Take the file, and what makes the prompts that it answers."""
        self.file = file
        self._encoding = encoding
        self._counts: Counter[str] = encoding.counts

    def students(self, task: Task, example: Example, *, max_tokens: int) -> list[StudentSequence]:
        """A sequence for each answer to an example; those that are too long are left out and counted.

        Raises:
            TaskError: the file has no line for a prompt, or an answer that cannot be one.
        """
        found = []
        for prompt in self._encoding.prompts(task, example):
            name = example.example_id + prompt.suffix
            answers = self.file.answers(name)
            if not answers:
                self._counts["prompts left out, because the file gives them no answer"] += 1
            for number, answer in enumerate(answers, start=1):
                ids = self._ids(name, answer)
                if len(prompt.ids) + len(ids) > max_tokens:
                    self._counts[f"answers left out, because they do not fit in {max_tokens} tokens"] += 1
                    continue
                self._counts["answers cut short by their limit, learned without an end"] += answer.cut_short
                self._counts["empty answers, of which the end alone is learned"] += not answer.text
                found.append(
                    StudentSequence(
                        AnsweredSequence.answering(prompt.ids, ids),
                        prompt.suffix + (f"~{number}" if len(answers) > 1 else ""),
                        (prompt.turn,),
                        sampled=True,
                    )
                )
        for note in [note for note, count in self._counts.items() if not count]:
            del self._counts[note]
        return found

    def _ids(self, name: str, answer: GivenAnswer) -> Sequence[int]:
        """The ids of an answer: those of the file where it has them, otherwise those of its text."""
        encoder = self._encoding.encoder
        if answer.token_ids is None:
            if not answer.text:
                raise TaskError(
                    f"{self.file.place(name)}: answers to {name}: expected text, got an empty one; leave it out, or "
                    "give the token_ids of what was written"
                )
            ids = encoder.encode_answer(answer.text)
            return ids[:-1] if answer.cut_short else ids
        check_ids(f"{self.file.place(name)}: answers to {name}", answer, encoder)
        return answer.token_ids


def check_ids(place: str, answer: GivenAnswer, encoder: PromptEncoder) -> None:
    """Refuse token ids that do not spell an answer's text, or that do not end as it says.

    Args:
        place: for messages.
        answer: has ids.
        encoder: of the model that learns from it.

    Raises:
        TaskError: the first thing that is wrong.
    """
    ids, size = answer.token_ids or (), len(encoder.tokenizer)
    if not ids:
        raise TaskError(f"{place}: token_ids: expected at least one, got none; leave the answer out")
    for token in ids:
        if not 0 <= token < size:
            raise TaskError(f"{place}: token_ids: expected ids below {size}, the size of the vocabulary, got {token}")
    stops = [position for position, token in enumerate(ids) if token in encoder.stop_ids]
    if stops and stops[0] < len(ids) - 1:
        raise TaskError(
            f"{place}: token_ids: expected nothing after the end of turn, got {len(ids)} ids, the first "
            f"end at {stops[0]}"
        )
    if bool(stops) == answer.cut_short:
        said = LENGTH if answer.cut_short else STOP
        end = "none" if not stops else "one"
        raise TaskError(
            f"{place}: finish_reason: {said} expects {'no' if answer.cut_short else 'an'} end of turn in token_ids, "
            f"got {end}"
        )
    text = decode(encoder, ids)
    if text != answer.text:
        raise TaskError(
            f"{place}: token_ids: expected ids that spell {_short(answer.text)}, got {_short(text)}; they come from "
            "a different tokenizer, or the text was edited: leave out token_ids to tokenise the text"
        )


def decode(encoder: PromptEncoder, ids: Sequence[int]) -> str:
    """The text of an answer: up to the first token that ends it."""
    end = next((position for position, token in enumerate(ids) if token in encoder.stop_ids), len(ids))
    text = encoder.tokenizer.decode(list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def record_path(path: Path) -> Path:
    """Where the record of a file of answers lies."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> Mapping[str, Any] | None:
    """The record of a file of answers; None without one.

    Raises:
        TaskError: it cannot be read.
    """
    record = record_path(path)
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TaskError(
            f"--answers: {shlex.quote(str(record))} cannot be read: {reason}; delete it, or sample again"
        ) from None
    if not isinstance(found, dict):
        raise TaskError(f"--answers: {shlex.quote(str(record))}: expected an object, got {type(found).__name__}")
    return found


def as_line(prompt_name: str, answers: Sequence[GivenAnswer]) -> str:
    """A prompt's line in a file of answers."""
    told = []
    for answer in answers:
        ids = {} if answer.token_ids is None else {"token_ids": list(answer.token_ids)}
        told.append({"text": answer.text, **ids, "finish_reason": LENGTH if answer.cut_short else STOP})
    return json.dumps({"id": prompt_name, "answers": told}, ensure_ascii=False) + "\n"


def _read(place: str, line: bytes) -> tuple[str, list[GivenAnswer]]:
    """Id and answers of a line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskError(
            f"{place}: expected JSON, got {_short(line.decode('utf-8', 'replace').strip())}: {error}"
        ) from None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise TaskError(f'{place}: expected an object with "id" (text) and "answers" (a list), got {_short(str(row))}')
    answers = row.get("answers")
    if not isinstance(answers, list):
        raise TaskError(f"{place}: answers: expected a list, got {_short(json.dumps(answers))}")
    return row["id"], [_answer(f"{place}: answers[{number}]", answer) for number, answer in enumerate(answers)]


def _answer(place: str, value: Any) -> GivenAnswer:
    if isinstance(value, str):
        return GivenAnswer(_spelled(place, value), None, cut_short=False)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise TaskError(f'{place}: expected text, or an object with "text", got {_short(json.dumps(value))}')
    ids, reason = value.get("token_ids"), value.get("finish_reason", STOP)
    if reason not in (STOP, LENGTH):
        raise TaskError(f"{place}.finish_reason: expected {STOP} or {LENGTH}, got {_short(json.dumps(reason))}")
    if ids is not None and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise TaskError(f"{place}.token_ids: expected whole numbers, got {_short(json.dumps(ids))}")
    text = _spelled(f"{place}.text", value["text"])
    return GivenAnswer(text, None if ids is None else tuple(ids), cut_short=reason == LENGTH)


def _spelled(place: str, text: str) -> str:
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise TaskError(f"{place}: expected valid UTF-8 text, got an invalid character")
    return text


def _as_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=vars).encode()


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")
