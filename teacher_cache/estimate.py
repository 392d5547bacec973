"""What a build would cost, counted before any model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from logitbank.configs import Config
from logitbank.registry import ENCODINGS
from logitbank.storage import Encoding, bytes_of_draws
from logitbank.teacher_cache.examples import Cell
from logitbank.teacher_cache.plan import every_question, report
from logitbank.teacher_cache.questions import Questions


@dataclass(frozen=True)
class CellEstimate:
    """One task in one language.

    Attributes:
        task: its name.
        language: ISO 639-1 code, or `und`.
        examples: that the store will hold.
        answer_tokens: of these examples, ends of turn included.
        left_out: examples that do not fit, or that a chat template refuses.
        tokens: view -> tokens that the teacher reads.
        demonstrations_dropped: view -> demonstrations that had to go for length.
    """

    task: str
    language: str
    examples: int
    answer_tokens: int
    left_out: int
    tokens: Mapping[str, int]
    demonstrations_dropped: Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """A whole build.

    Attributes:
        cells: in the order of task and language.
        views: those that would be filled.
        top_k: stored ranks.
        draws: per answer token; 0 without.
        encoding: of the store.
        bytes_per_token: expected, per answer token and view.
    """

    cells: tuple[CellEstimate, ...]
    views: tuple[str, ...]
    top_k: int
    draws: int
    encoding: str
    bytes_per_token: float

    @property
    def examples(self) -> int:
        """Examples of all cells."""
        return sum(cell.examples for cell in self.cells)

    @property
    def answer_tokens(self) -> int:
        """Answer tokens of all cells, counted once."""
        return sum(cell.answer_tokens for cell in self.cells)

    @property
    def tokens(self) -> int:
        """Tokens that the teacher reads, over all views."""
        return sum(sum(cell.tokens.values()) for cell in self.cells)

    @property
    def bytes(self) -> float:
        """Expected size of the store."""
        return self.answer_tokens * len(self.views) * self.bytes_per_token


def estimate(config: Config, questions: Questions) -> Estimate:
    """Count what is asked of the teacher, and what of it would be stored.

    Raises:
        ConfigError: no example fits the length limits.
    """
    examples: Counter[Cell] = Counter()
    answers: Counter[Cell] = Counter()
    tokens, dropped = ({view: Counter[Cell]() for view in questions.views} for _ in range(2))
    for asked in every_question(questions):
        cell = asked.record.task, asked.record.language
        examples[cell] += 1
        answers[cell] += asked.record.sequence.answer_length
        for view, found in asked.views.items():
            tokens[view][cell] += len(found.sequence) - 1
            dropped[view][cell] += asked.dropped[view]
    report(questions.left_out, questions.notes)
    ranks, draws = stored_ranks(config), 0 if config.teacher.signal == "topk" else config.teacher.draws
    return Estimate(
        cells=tuple(
            CellEstimate(
                task=cell[0],
                language=cell[1],
                examples=examples[cell],
                answer_tokens=answers[cell],
                left_out=questions.left_out[cell],
                tokens={view: counted[cell] for view, counted in tokens.items()},
                demonstrations_dropped={view: counted[cell] for view, counted in dropped.items()},
            )
            for cell in sorted(examples | questions.left_out)
        ),
        views=questions.views,
        top_k=ranks,
        draws=draws,
        encoding=config.store.encoding,
        bytes_per_token=bytes_per_token(config.store.encoding, ranks, draws),
    )


def stored_ranks(config: Config) -> int:
    """K: draws from all tokens need no ranks, but the first choice is kept for all that is reported of it."""
    return 1 if config.teacher.signal == "sampled" else config.teacher.top_k


def bytes_per_token(encoding: str, top_k: int, draws: int = 0) -> float:
    """Expected bytes of one answer token under one view."""
    chosen: Encoding = ENCODINGS[encoding]
    return chosen.bytes_per_token(top_k) + bytes_of_draws(draws)
