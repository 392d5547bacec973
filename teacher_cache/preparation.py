"""A build before any model is loaded: whether the teacher fits, and what it will be asked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.registry import TEACHER_ENGINES
from logitbank.tasks.answers import AnswersFile
from logitbank.tasks.data import cells
from logitbank.teacher_cache.engines.base import TeacherOpener
from logitbank.teacher_cache.examples import TRAIN, open_examples
from logitbank.teacher_cache.pairing import pair
from logitbank.teacher_cache.questions import ConfiguredQuestions, check_views

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A build before any model is loaded.

    Attributes:
        teacher: the model that will be asked.
        questions: what it will be asked.
    """

    teacher: ModelConfig
    questions: ConfiguredQuestions


@contextlib.contextmanager
def prepare(
    config: Config, views: Sequence[str] = DEFAULT_VIEWS, split: str = TRAIN, answers: str | None = None
) -> Iterator[Prepared]:
    """Check that the teacher fits, and read the examples that it will be asked about.

    Args:
        config: of the build.
        views: which to fill.
        split: split of the examples: `train`, or `validation` or `test` for evaluation.
        answers: file of answers that a model wrote, which take the place of those that the examples give.

    Raises:
        ConfigError: a key that the engine cannot honour, a tokenizer or model configuration that cannot be
            opened or does not fit the student's, an unknown view, or one that a task does not have.
        TaskError: a requested task or language that does not exist, or data or answers that cannot be opened.
    """
    opener = opener_of(config)
    opener.check(config)
    pairing = pair(config)
    _check_ranks(config, pairing.rankable)
    check_views(config, views)
    if answers is not None and split != TRAIN:
        raise ConfigError(
            f"--answers: students learn from them, so they are of the training split; expected --split {TRAIN}, got "
            f"{split}"
        )
    file = None if answers is None else AnswersFile(answers)
    present, absent = cells(config.tasks, config.languages)
    if absent:
        logger.info("no such data, skipped: %s", ", ".join(f"{task}/{language}" for task, language in absent))
    with open_examples(config, split, present) as examples:
        if file is not None:
            file.require_examples({examples[number].example_id for number in range(len(examples))})
        questions = ConfiguredQuestions(config, examples, pairing, tuple(dict.fromkeys(views)), split, file)
        for line in questions.remarks():
            logger.info("%s", line)
        yield Prepared(pairing.teacher, questions)


def opener_of(config: Config) -> TeacherOpener:
    """The engine that a configuration names, not open yet."""
    opener: TeacherOpener = TEACHER_ENGINES[config.teacher.engine]
    return opener


def _check_ranks(config: Config, rankable: int) -> None:
    if config.teacher.top_k > rankable:
        raise ConfigError(
            f"teacher.top_k: expected at most {rankable}, the size of the vocabulary, got {config.teacher.top_k}"
        )
