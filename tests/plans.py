"""What builds ask, for tests: of lists, without data sets and tokenizers; and what a configuration asks, as lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from logitbank.configs import Config
from logitbank.models.workers import Worker
from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord
from logitbank.tasks.encoding import TeacherSequence
from logitbank.teacher_cache.fill import fill_share
from logitbank.teacher_cache.preparation import prepare
from logitbank.teacher_cache.questions import Asked
from logitbank.teacher_cache.scoring import Tally
from logitbank.teacher_cache.session import begin


class ListedQuestions:
    """`Questions` of lists: every example is one record, asked under each view as given."""

    split = "train"
    untaught: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()
    teacher_template: str | None = None
    teacher_tokenizer: str | None = None
    answers: Mapping[str, Any] | None = None

    def __init__(
        self, encoder: Any, records: Sequence[ExampleRecord], views: Mapping[str, Sequence[TeacherSequence]]
    ) -> None:
        self.encoder = encoder
        self.records = records
        self.sequences = views
        self.views = tuple(views)
        self.left_out: Counter[tuple[str, str]] = Counter()
        self.notes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.records)

    def asked(self, number: int) -> list[Asked]:
        views = {view: sequences[number] for view, sequences in self.sequences.items()}
        return [Asked(self.records[number], number, 0, views, dict.fromkeys(views, 0))]

    def held_out(self) -> Iterator[ExampleRecord]:
        return iter(())

    def again(self, view: str, source: int, part: int) -> tuple[ExampleRecord, AnsweredSequence]:
        return self.records[source], self.sequences[view][source].sequence

    def misfits(self) -> str:
        return "them fits"

    def key(self, view: str | None = None) -> Mapping[str, Any]:
        return {"view": view, "records": len(self.records)}


@dataclass
class GatheredView:
    sequences: list[AnsweredSequence] = field(default_factory=list)
    demonstrations: list[int] = field(default_factory=list)


@dataclass
class Gathered:
    """All that a configuration asks, in store order."""

    encoder: Any
    teacher: Any
    examples: list[ExampleRecord]
    views: dict[str, GatheredView]

    @property
    def answer_tokens(self) -> int:
        return sum(record.sequence.answer_length for record in self.examples)

    @property
    def longest(self) -> int:
        return max(len(sequence) for view in self.views.values() for sequence in view.sequences)


def gather(config: Config, views: Sequence[str], split: str = "train") -> Gathered:
    with prepare(config, views, split) as prepared:
        questions = prepared.questions
        found = Gathered(questions.encoder, prepared.teacher, [], {view: GatheredView() for view in questions.views})
        for number in range(len(questions)):
            for asked in questions.asked(number):
                found.examples.append(asked.record)
                for view, (sequence, shown) in asked.views.items():
                    found.views[view].sequences.append(sequence)
                    found.views[view].demonstrations.append(shown)
        return found


def fill_with(
    url: str, config: Config, views: Sequence[str], engine: Any, worker: Worker | None = None, split: str = "train"
) -> Tally:
    """Build with an engine that is open."""
    with (
        prepare(config, views, split) as prepared,
        begin(
            url,
            config,
            prepared.questions,
            lambda longest: engine,
            finds_prefixes=engine.reuses_prefixes,
            worker=worker,
        ) as session,
    ):
        return fill_share(session, worker)
