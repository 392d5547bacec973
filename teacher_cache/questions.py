"""What a teacher will be asked: every example encoded under every view, in store order, or some of them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

import logitbank
from logitbank.configs import data_settings
from logitbank.configs.schema import Config, ConfigError
from logitbank.errors import StoreError, counted
from logitbank.experiment import CONVERSATION_VIEWS, QUESTION_VIEWS, VIEWS
from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord
from logitbank.tasks import TASKS, Example
from logitbank.tasks.answers import AnsweredExamples, AnswersFile
from logitbank.tasks.data import demonstration_pool, get_task
from logitbank.tasks.demonstrations import draw_demonstrations, shuffle_answers
from logitbank.tasks.encoding import ExampleEncoder, StudentSequence, TeacherSequence
from logitbank.tasks.outside import source_hashes
from logitbank.tasks.prompts import PromptEncoder
from logitbank.tasks.spool import digest_of
from logitbank.teacher_cache.examples import TRAIN, Cell, StoreExamples
from logitbank.teacher_cache.pairing import Pairing

CHAT = "chat"
SHOWING = ("fewshot", "shuffled_answers")  # views with demonstrations


class Asked(NamedTuple):
    """One example of a store, and what the teacher is asked about it.

    Attributes:
        record: the example as the store keeps it.
        source: number of the example that it was made of, in the order in which they are asked.
        part: which of that example's sequences it is, where one gives several.
        views: view -> what the teacher reads.
        dropped: view -> demonstrations that had to go for length.
    """

    record: ExampleRecord
    source: int
    part: int
    views: Mapping[str, TeacherSequence]
    dropped: Mapping[str, int]


class Questions(Protocol):
    """All that a build asks; a plan is made of it, and shards are scored with it.

    Attributes:
        views: under which.
        split: whose examples: `train`, `validation` or `test`.
        encoder: made the prompts.
        untaught: answer tokens that the teacher is not asked for, because it ends a turn with another: where one
            of them is the gold token, its row says nothing to a student.
        excluded: ids below the tokenizer's length that are another token for the teacher, or none: never ranked.
        teacher_template: hash of the teacher's chat template, if it is another than the student's.
        teacher_tokenizer: hash of the teacher's tokenizer, for information, if it is another model.
        answers: which model wrote the answers, and how, if they are not the examples' own; its `model` is None
            if nothing says it.
        left_out: examples that do not fit, or that a chat template refuses, per (task, language), so far.
        notes: what was left out or changed so far, in words.
    """

    views: tuple[str, ...]
    split: str
    encoder: PromptEncoder
    untaught: tuple[int, ...]
    excluded: tuple[int, ...]
    teacher_template: str | None
    teacher_tokenizer: str | None
    answers: Mapping[str, Any] | None
    left_out: Counter[Cell]
    notes: Counter[str]

    def __len__(self) -> int:
        """Examples before any is left out."""

    def asked(self, number: int) -> list[Asked]:
        """What is asked about one of the examples; nothing where it does not fit."""

    def held_out(self) -> Iterator[ExampleRecord]:
        """The examples of the validation split."""

    def again(self, view: str, source: int, part: int) -> tuple[ExampleRecord, AnsweredSequence]:
        """One of the examples again, and what the teacher reads under a view.

        Raises:
            StoreError: it no longer exists.
        """

    def misfits(self) -> str:
        """The examples that were left out, where all were: `12 examples fits in 40 tokens`."""

    def key(self, view: str | None = None) -> Mapping[str, Any]:
        """All that decides the examples, or else what is asked of them under a view, as JSON."""


class ConfiguredQuestions:
    """The `Questions` of a configuration."""

    def __init__(
        self,
        config: Config,
        examples: StoreExamples,
        pairing: Pairing,
        views: Sequence[str],
        split: str = TRAIN,
        answers: AnswersFile | None = None,
    ) -> None:
        """Take everything together; see `preparation.prepare`."""
        self.views = tuple(views)
        self.split = split
        self.encoder = pairing.encoder
        self.excluded = pairing.excluded
        self.teacher_tokenizer = pairing.teacher_tokenizer
        own = pairing.own
        self.teacher_template = None if own is None else own.template_hash
        ends_alike = own is None or own.end_of_turn_id == self.encoder.end_of_turn_id
        self.untaught: tuple[int, ...] = () if ends_alike else (self.encoder.end_of_turn_id,)
        self.left_out: Counter[Cell] = Counter()
        self._config, self._examples, self._pairing = config, examples, pairing
        self._encoding = ExampleEncoder(self.encoder, own, data_settings(config).chat)
        self.notes: Counter[str] = self._encoding.counts
        self._answered = None if answers is None else AnsweredExamples(answers, self._encoding)
        self.answers: Mapping[str, Any] | None = None if answers is None else told_of(answers.record)
        self._pools: dict[Cell, list[Example]] = {}
        self._latest: tuple[int, Example, list[tuple[ExampleRecord, StudentSequence]]] | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def asked(self, number: int) -> list[Asked]:
        """See `Questions.asked`.

        Raises:
            ConfigError: an id in it is another token for the teacher.
        """
        example = self._examples[number]
        demonstrations = {view: self._demonstrations(view, example) for view in self.views}
        found = []
        for part, (record, student) in enumerate(self._records(example)):
            views = {view: self._ask(view, example, student, demonstrations[view]) for view in self.views}
            fitting = {view: sequence for view, sequence in views.items() if sequence is not None}
            if len(fitting) < len(views):
                self.left_out[(example.task, example.language)] += 1
                if example.task == CHAT:
                    self.notes["sequences left out, too long for the teacher"] += 1
                continue
            self._pairing.check(record.sequence, [it.sequence for it in fitting.values()], self.untaught)
            dropped = {view: len(demonstrations[view]) - it.demonstrations for view, it in fitting.items()}
            found.append(Asked(record, number, part, fitting, dropped))
        return found

    def held_out(self) -> Iterator[ExampleRecord]:
        """See `Questions.held_out`."""
        for example in self._examples.validation():
            for record, _ in self._records(example, given=True):
                yield record

    def again(self, view: str, source: int, part: int) -> tuple[ExampleRecord, AnsweredSequence]:
        """See `Questions.again`."""
        if self._latest is None or self._latest[0] != source:
            example = self._examples[source]
            self._latest = source, example, self._records(example)
        _, example, records = self._latest
        if part < len(records):
            record, student = records[part]
            found = self._ask(view, example, student, self._demonstrations(view, example))
            if found is not None:
                return record, found.sequence
        raise StoreError(f"example {example.example_id!r}: no longer gives the sequence that was planned")

    def key(self, view: str | None = None) -> Mapping[str, Any]:
        """See `Questions.key`."""
        if view is not None:
            return {"view": view, "demonstrations": self._shown() if view in SHOWING else None}
        import transformers  # its templates and tokenizers made the prompts

        config, own, tokens = self._config, self._pairing.own, self._pairing.tokens
        return {
            "logitbank": logitbank.__version__,
            "transformers": transformers.__version__,
            "data": self._examples.digest,
            "tasks": source_hashes(config.tasks),
            "limits": {task: [self.student_limit(task), self.teacher_limit(task)] for task in config.tasks},
            "chat": str(data_settings(config).chat),
            "seed": config.seed,
            "split": self.split,
            "encoders": [[it.tokenizer_hash, it.template_hash] for it in (self.encoder, own) if it is not None],
            "other tokens": [] if tokens is None else tokens.ids.tolist(),
            **({} if self._answered is None else {"answers": self._answered.file.digest}),
        }

    def _shown(self) -> dict[str, Any]:
        """What decides which demonstrations a prompt has."""
        fewshot, cells = self._config.fewshot, self._examples.cells
        return {
            "selection": fewshot.selection,
            "wanted": {task: self._wanted(task) for task, _ in cells},
            "pools": {f"{task}/{language}": digest_of(self._pool((task, language))) for task, language in cells},
        }

    def student_limit(self, task: str) -> int:
        """Most tokens of a student's sequence."""
        limit = self._config.data.max_student_tokens or int(TASKS[task].max_student_tokens)
        return min(limit, self._pairing.contexts.student or limit)

    def teacher_limit(self, task: str) -> int:
        """Most tokens of a teacher's sequence."""
        limit = self._config.data.max_teacher_tokens or int(TASKS[task].max_teacher_tokens)
        return min(limit, self._pairing.contexts.teacher or limit)

    def misfits(self) -> str:
        """See `Questions.misfits`."""
        limit = self.student_limit(self._examples[0].task) if len(self) else 0
        return f"{counted(len(self), 'example')} fits in {limit} tokens"

    def remarks(self) -> Iterator[str]:
        """What to say of lengths that were asked for."""
        data, contexts = self._config.data, self._pairing.contexts
        for name, asked, most in (
            ("student", data.max_student_tokens, contexts.student),
            ("teacher", data.max_teacher_tokens, contexts.teacher),
        ):
            if asked is not None and most is not None and asked > most:
                yield f"data.max_{name}_tokens: {most:,}, all that the model reads; got {asked:,}"

    def _records(self, example: Example, *, given: bool = False) -> list[tuple[ExampleRecord, StudentSequence]]:
        """What students learn from an example; nothing, counted, if even the query does not fit.

        Args:
            example: asked, or held out.
            given: whether its own answer is meant, whatever a model wrote.
        """
        task, limit = TASKS[example.task], self.student_limit(example.task)
        if self._answered is not None and not given:
            students = self._answered.students(task, example, max_tokens=limit)
        else:
            students = self._encoding.student(task, example, max_tokens=limit)
        if not students and (given or self._answered is None):  # what becomes of answers is in the notes
            self.left_out[(example.task, example.language)] += 1
        return [
            (ExampleRecord(example.example_id + it.suffix, example.task, example.language, it.sequence), it)
            for it in students
        ]

    def _ask(
        self, view: str, example: Example, student: StudentSequence, demonstrations: Sequence[Example]
    ) -> TeacherSequence | None:
        task = TASKS[example.task]
        limit = self.teacher_limit(example.task)
        found = self._encoding.teacher(view, task, example, student, demonstrations, max_tokens=limit)
        if found is None:
            return None
        self._check_alignment(view, example, student.sequence, found.sequence)
        return found._replace(sequence=self._with_known_end(found.sequence))

    def _with_known_end(self, sequence: AnsweredSequence) -> AnsweredSequence:
        """The sequence with the teacher's own end of turn where it has no token for the student's: no logits either."""
        teacher, ids = self._encoding.teacher_encoder, sequence.ids
        if teacher is None or ids[-1] not in self.untaught or _knows(teacher, int(ids[-1])):
            return sequence
        return AnsweredSequence(np.append(ids[:-1], teacher.end_of_turn_id), sequence.spans)

    def _check_alignment(
        self, view: str, example: Example, student: AnsweredSequence, teacher: AnsweredSequence
    ) -> None:
        """Every span of the student's is there, its ids the same; ends of turn aside that carry no teacher term."""
        if teacher is student:
            return
        lengths = [[span.length for span in sequence.spans] for sequence in (student, teacher)]
        same = lengths[0] == lengths[1] and (
            (student.answer_ids == teacher.answer_ids) | np.isin(student.answer_ids, self.untaught)
        )
        if not np.all(same):
            raise RuntimeError(
                f"{example.example_id}: view {view} has other answers than the student; please report this"
            )

    def _demonstrations(self, view: str, example: Example) -> list[Example]:
        if view not in SHOWING:
            return []
        fewshot, seed = self._config.fewshot, self._config.seed
        pool = self._pool((example.task, example.language))
        drawn = draw_demonstrations(pool, example, self._wanted(example.task), seed=seed, selection=fewshot.selection)
        return shuffle_answers(drawn, seed=seed, query=example) if view == "shuffled_answers" else drawn

    def _wanted(self, task: str) -> int:
        return self._config.fewshot.num_demonstrations.get(task, TASKS[task].num_demonstrations)

    def _pool(self, cell: Cell) -> list[Example]:
        if cell not in self._pools:
            self._pools[cell] = demonstration_pool(*cell, data_settings(self._config), stage="train")
        return self._pools[cell]


def told_of(record: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a store keeps of the record of a file of answers: all but what decides nothing."""
    return {"model": None, **{name: value for name, value in (record or {}).items() if name != "versions"}}


def check_views(config: Config, views: Sequence[str]) -> None:
    """Raise `ConfigError` for an unknown view, or one that a task does not have."""
    for view in views:
        if view not in VIEWS:
            raise ConfigError(f"--view: expected one of {', '.join(VIEWS)}, got {view!r}")
        for task in config.tasks:
            having = CONVERSATION_VIEWS if get_task(task).name == CHAT else QUESTION_VIEWS
            if view not in having:
                raise ConfigError(f"--view: expected one of {', '.join(having)} for {task}, got {view!r}")


def _knows(encoder: PromptEncoder, token: int) -> bool:
    return encoder.tokenizer.convert_ids_to_tokens(token) is not None
