"""What a teacher engine is: sequences with answers in, `TeacherRows` out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config
from logitbank.configs.schema import ModelConfig
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows
from logitbank.teacher_cache.sampling import Sampling


@dataclass(frozen=True)
class Sequenced:
    """One sequence to score.

    Attributes:
        sequence: what the teacher reads; rows are wanted for every token of its answer spans.
        shared: leading tokens, fewer than come before the first span, that other sequences begin with too: an
            engine may compute them once. Sequences of one batch have the same number and the same such tokens.
        sampling: what to draw besides, the same kind for all sequences of a batch; None for no draws.
    """

    sequence: AnsweredSequence
    shared: int = 0
    sampling: Sampling | None = None

    def __len__(self) -> int:
        """Tokens that the teacher reads: nothing is predicted from the last."""
        return len(self.sequence) - 1

    @property
    def read_ids(self) -> NDArray[np.int32]:
        """(len(self),) int32, the tokens that the teacher reads."""
        return self.sequence.ids[:-1]

    @property
    def own(self) -> int:
        """Tokens that are not shared."""
        return len(self) - self.shared

    @property
    def prefix(self) -> bytes:
        """The shared tokens, to group sequences by."""
        return self.sequence.ids[: self.shared].tobytes()


class TeacherEngine(Protocol):
    """A frozen language model that scores given answers.

    Attributes:
        vocab_size: rows of its `lm_head`.
    """

    vocab_size: int

    @property
    def reuses_prefixes(self) -> bool:
        """Whether it makes use of `Sequenced.shared`."""

    @property
    def batches_itself(self) -> bool:
        """Whether it takes any number of sequences at once and forms batches of its own."""

    def identity(self) -> Mapping[str, Any]:
        """What of the model and engine changes numbers: weights, dtype, engine, versions."""

    def score_batches(self, batches: Iterable[Sequence[Sequenced]], top_k: int) -> Iterator[TeacherRows]:
        """Teacher rows of all answer tokens, batch by batch: sequences in the given order, in each span after span.

        An engine may take further batches before it yields the rows of the first.
        """


@dataclass(frozen=True)
class Opening:
    """What an engine is opened with.

    Attributes:
        config: the whole configuration; an engine reads `teacher.*` and the keys of its own.
        model: the teacher.
        tokenizer_size: rows of the `lm_head` at and above this are padding and never enter the top K.
        excluded: token ids below it that never do either: the student means other tokens by them, or none.
        longest: tokens of the longest sequence.
        environment: of the process, for what a launcher says there.
    """

    config: Config
    model: ModelConfig
    tokenizer_size: int
    longest: int
    environment: Mapping[str, str]
    excluded: tuple[int, ...] = ()


class TeacherOpener(Protocol):
    """What a name in `TEACHER_ENGINES` stands for: an engine that is not open yet."""

    def check(self, config: Config) -> None:
        """Raise `ConfigError` for a key whose value this engine cannot honour; loads nothing."""

    def finds_prefixes(self, config: Config) -> bool:
        """Whether the engine will make use of `Sequenced.shared`, for which a plan is searched then."""

    def require(self, config: Config, environment: Mapping[str, str]) -> None:
        """Raise `ConfigError` if this machine, or the way the process was started, lacks what it needs."""

    def open(self, opening: Opening) -> TeacherEngine:
        """Load the model.

        Raises:
            ConfigError: it cannot be opened, or not as asked.
        """
