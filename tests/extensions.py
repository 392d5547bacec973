"""What a user would write in a module of their own: one of each kind that can be chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from logitbank.configs import Config, ConfigError
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.evaluation.engines.base import Answer, Request
from logitbank.models.huggingface import lm_head_rows
from logitbank.storage import TeacherRows
from logitbank.storage.teacher_store.encodings import Slack
from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.base import Loss, StudentLogits, TeacherLogits
from logitbank.student_train.strategies.base import Strategy
from logitbank.tasks.common import Example, HubSource, Source, class_name
from logitbank.tasks.scoring.labels import LabelAnswers
from logitbank.teacher_cache.engines.base import Opening, Sequenced
from logitbank.teacher_cache.signal import signal
from tests.storage.test_own_encoding import Eighths

LABELS = ("odd", "even")


class Parity(LabelAnswers):
    """Is a number odd or even?"""

    name = "parity"
    system_prompt = "Is the number odd or even?"
    languages: tuple[str, ...] = ("en",)
    sources: Mapping[str, Source] = {
        "mine": Source(
            lambda split, language: HubSource("me/parity", config="default", split=split),
            train_languages=("en",),
            eval_languages=("en",),
        )
    }
    num_demonstrations = 2
    max_new_tokens = 6
    labels = LABELS

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        label = class_name(row["label"], LABELS)
        if label is None:
            return None
        return Example(example_id, self.name, language, {"number": row["number"]}, answer=label)

    def user_message(self, example: Example) -> str:
        return f"Number: {example.fields['number']}"


PARITY = Parity()
EIGHTHS = Eighths(Slack(logits=1 / 8, scalars=1 / 8))


class Absolute(Loss):
    """The mean distance of logits."""

    def __call__(self, student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
        return (student.top_TK - teacher.logits_TK).abs().mean(dim=1)


class Halved(Strategy):
    """Half of whatever λ the other parts give."""

    def factor(self, batch: Batch) -> float:
        return 0.5


class Oracle:
    """A teacher that knows the gold answer: five nats more for it than for anything else."""

    reuses_prefixes = False
    batches_itself = True

    def __init__(self, opening: Opening) -> None:
        self.vocab_size = lm_head_rows(opening.model)
        self._tokenizer_size = opening.tokenizer_size

    @staticmethod
    def check(config: Config) -> None:
        if config.teacher.load_in_8bit:
            raise ConfigError("teacher.load_in_8bit: an oracle has no weights; set it to false")

    @staticmethod
    def finds_prefixes(config: Config) -> bool:
        """It reads nothing."""
        return False

    @staticmethod
    def require(config: Config, environment: Mapping[str, str]) -> None:
        """Anywhere."""

    @classmethod
    def open(cls, opening: Opening) -> Oracle:
        return cls(opening)

    def identity(self) -> Mapping[str, Any]:
        return {"model": "oracle", "engine": "oracle"}

    def score_batches(self, batches: Iterable[Sequence[Sequenced]], top_k: int) -> Iterator[TeacherRows]:
        for batch in batches:
            gold_T = torch.from_numpy(np.concatenate([item.sequence.answer_ids for item in batch]).astype(np.int64))
            logits_TV = torch.zeros(len(gold_T), self.vocab_size).scatter(1, gold_T[:, None], 5.0)
            yield signal(logits_TV, gold_T, top_k, self._tokenizer_size)


class AlwaysEven:
    """Answers `even` to everything."""

    context_tokens: int | None = None

    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[Answer]:
        progress(len(requests))
        return [Answer("even", cut_short=False) for _ in requests]

    def answer_logprobs(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, progress: Callable[[int], object]
    ) -> list[float]:
        progress(len(prompts))
        return [0.0 for _ in prompts]


def open_always_even(config: Config, checkpoint: Checkpoint | None) -> AlwaysEven:
    return AlwaysEven()
