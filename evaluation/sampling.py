"""Answers that a model writes to the training examples, as a file that `build-teacher-cache --answers` takes."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import ConfigError, ConfigSource, config_of, data_settings
from logitbank.configs.training_data import training_examples
from logitbank.errors import OutputError, counted
from logitbank.evaluation.engines.base import Draw, Engine, EngineOpener, Request, Sample, Sampling, open_engine
from logitbank.evaluation.writers import Writer, find_writer
from logitbank.experiment import flatten
from logitbank.progress import Progress
from logitbank.tasks import TASKS
from logitbank.tasks.answers import GivenAnswer, as_line, decode, read_record, record_path
from logitbank.tasks.data import cells
from logitbank.tasks.encoding import ExampleEncoder
from logitbank.tasks.spool import Spool

logger = logging.getLogger(__name__)

BLOCK = 512  # answers that are written together, and that batches are formed among


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        name: id of the example, and the turn where it has several.
        example: number of the example.
        ids: the prompt.
        room: most tokens of an answer; below 1 if none fits.
    """

    name: str
    example: int
    ids: Sequence[int]
    room: int


@dataclass
class Tally:
    """What was written, by this run."""

    prompts: int = 0
    answers: int = 0
    tokens: int = 0
    cut_short: int = 0
    empty: int = 0
    without_room: int = 0

    def add(self, prompt: Prompt, answers: Sequence[GivenAnswer], samples: Sequence[Sample]) -> None:
        """Count the answers to a prompt."""
        self.prompts += 1
        self.answers += len(answers)
        self.tokens += sum(len(sample.token_ids) for sample in samples)
        self.cut_short += sum(answer.cut_short for answer in answers)
        self.empty += sum(not answer.text for answer in answers)
        self.without_room += prompt.room < 1

    def __str__(self) -> str:
        parts = [counted(self.prompts, "prompt"), counted(self.answers, "answer"), counted(self.tokens, "token")]
        for count, what in ((self.cut_short, "cut short"), (self.empty, "empty")):
            parts += [f"{count:,} {what}"] if count else []
        if self.without_room:
            parts.append(f"{counted(self.without_room, 'prompt')} too long for an answer")
        return ", ".join(parts)


def sample_answers(config: ConfigSource, *, output: str | os.PathLike[str], opener: EngineOpener = open_engine) -> Path:
    """Let a model answer every training example and write its answers; an unfinished file is resumed.

    The same configuration writes the same answers, in one go or resumed, on the same machine and software.

    Args:
        config: a configuration, a file or shipped name, a mapping of keys, or a list of these and of `key=value`;
            `sampling` selects the model and the settings.
        output: the file, JSON lines. `OUTPUT.json` records which model wrote it.
        opener: opens the engine.

    Returns:
        The file.

    Raises:
        ConfigError, TaskError: anything that the user must fix, before a model is loaded; or a file of other settings.
        OutputError: a file that cannot be written.
    """
    settings, path = config_of(config), Path(output)
    if settings.is_preference:
        raise ConfigError("tasks: comparisons have labels, not answers to sample; choose other tasks")
    writer = find_writer(settings)
    with closing(Spool()) as spool:
        present, absent = cells(settings.tasks, settings.languages)
        if absent:
            logger.info("no such data, skipped: %s", ", ".join(f"{task}/{language}" for task, language in absent))
        tasks = dict.fromkeys(task for task, _ in present)
        order = np.concatenate([training_examples(settings, task, spool) for task in tasks])
        record = writer.record(spool.digest(order))
        if path.exists():
            _require_same(path, record)
            logger.info("done already: %s", shlex.quote(str(path)))
            return path
        try:
            answers = AnswersWriter(path, record, max(1, BLOCK // settings.sampling.n))
            tally = _answer(writer, _prompts(writer, spool, order), len(order), answers, opener)
            answers.finish()
        except OSError as error:
            if isinstance(error, OutputError) or error.filename is None:
                raise
            raise OutputError(f"--output: cannot write {shlex.quote(str(path))}: {error.strerror}") from error
    logger.info("%s: %s, by %s", shlex.quote(str(path)), tally, record["model"])
    return path


class AnswersWriter:
    """A file of answers that is being written, block by block.

    Attributes:
        block: prompts of a block.
        done: prompts that an earlier run has answered, whole blocks of them.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], block: int) -> None:
        """Begin a file, or take up what an interrupted run left of it.

        Raises:
            ConfigError: that was written with other settings.
        """
        self.block, self.done = block, 0
        self._path, self._unfinished = path, path.with_name(f"{path.name}.partial")
        if self._unfinished.exists():
            _require_same(path, record)
            self.done = self._whole_blocks()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = record_path(path).with_suffix(".partial")
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(record_path(path))
        self._unfinished.touch()

    def write(self, lines: Sequence[str]) -> None:
        """Write the lines of a block."""
        with self._unfinished.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Give the file its name: nothing is missing."""
        self._unfinished.replace(self._path)

    def _whole_blocks(self) -> int:
        """Prompts in whole blocks; what a kill left behind the last of them is cut off."""
        lines = kept = end = 0
        with self._unfinished.open("r+b") as file:
            for line in file:
                end += len(line)
                lines += line.endswith(b"\n")
                if line.endswith(b"\n") and lines % self.block == 0:
                    kept = end
            file.truncate(kept)
        return lines - lines % self.block


def _answer(
    writer: Writer, prompts: Iterator[Prompt], examples: int, answers: AnswersWriter, opener: EngineOpener
) -> Tally:
    """Answer all prompts that are not answered yet."""
    tally, passed = Tally(), 0
    for prompt in itertools.islice(prompts, answers.done):
        passed = prompt.example + 1
    if answers.done:
        logger.info("resuming after %s", counted(answers.done, "prompt"))
    engine: Engine | None = None
    with Progress("answers", examples, "examples") as progress:
        progress.advance(passed)
        while block := list(itertools.islice(prompts, answers.block)):
            engine = engine or opener(writer.opens, writer.checkpoint)
            step, passed = block[-1].example + 1 - passed, block[-1].example + 1
            answers.write(_answer_block(writer, engine, block, tally, functools.partial(_advance, progress, step)))
    return tally


def _advance(progress: Progress, examples: int, share: float) -> None:
    progress.advance(examples * share)


def _answer_block(
    writer: Writer, engine: Engine, prompts: Sequence[Prompt], tally: Tally, advance: Callable[[float], object]
) -> list[str]:
    """The lines of some prompts; a prompt that leaves no room has one without an answer."""
    config, encoder = writer.config, writer.encoder
    numbers = range(1, config.sampling.n + 1)
    asked = [(prompt, number) for prompt in prompts if prompt.room > 0 for number in numbers]
    draws = [
        Draw(Request(prompt.ids, prompt.room), writer.seed, f"answer\n{prompt.name}\n{number}")
        for prompt, number in asked
    ]
    sampling = Sampling(config.sampling.temperature, config.sampling.top_p, len(encoder.tokenizer))
    drawn = engine.sample(draws, sampling, progress=lambda count: advance(count / len(draws))) if draws else []
    if not draws:
        advance(1.0)
    of: dict[str, list[Sample]] = {prompt.name: [] for prompt in prompts}
    for (prompt, _), sample in zip(asked, drawn, strict=True):
        if sample.token_ids:  # else the first id was none of the tokenizer's
            of[prompt.name].append(sample)
    lines = []
    for prompt in prompts:
        samples = of[prompt.name]
        answers = [
            GivenAnswer(
                decode(encoder, sample.token_ids),
                tuple(sample.token_ids) if writer.same_tokens else None,
                sample.cut_short,
            )
            for sample in samples
        ]
        if not writer.same_tokens:  # an end of turn alone is not text that another tokenizer could spell
            answers = [answer for answer in answers if answer.text]
        tally.add(prompt, answers, samples)
        lines.append(as_line(prompt.name, answers))
    return lines


def _prompts(writer: Writer, spool: Spool, order: NDArray[np.int64]) -> Iterator[Prompt]:
    """All that is asked, in the order of the examples."""
    encoding = ExampleEncoder(writer.encoder, None, data_settings(writer.config).chat)
    limits = {task: (writer.prompt_limit(task), writer.answer_limit(task)) for task in writer.config.tasks}
    for number, position in enumerate(order.tolist()):
        example = spool[position]
        most, longest = limits[example.task]
        for prompt in encoding.prompts(TASKS[example.task], example):
            room = min(longest, most - len(prompt.ids))
            yield Prompt(example.example_id + prompt.suffix, number, prompt.ids.tolist(), room)
    for what, count in sorted(encoding.counts.items()):
        logger.info("%s: %s", what, f"{count:,}")


def _require_same(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a file of answers that other settings wrote, naming the first."""
    before, now = flatten(read_record(path) or {}), flatten(json.loads(json.dumps(record)))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new and not key.startswith("versions."):
            raise ConfigError(
                f"--output: {shlex.quote(str(path))} was started with {key} = {old}, but this run requests {new}; use "
                "the same settings to resume, or another file"
            )
