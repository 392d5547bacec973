"""One cell of a task that is scored by likelihood: its gold answers, teacher-forced, and what the model writes instead.

A row of `predictions` is one example: a conversation, of which several sequences may have been made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from logitbank.configs import Config, ConfigError, data_settings
from logitbank.evaluation.engines.base import Answer, Engine, Likelihood, Request, Teacher
from logitbank.evaluation.identity import Identity
from logitbank.evaluation.questions import Question, asked_and_gold
from logitbank.evaluation.reference import Reference
from logitbank.sequences import AnsweredSequence
from logitbank.tasks import TASKS, Task
from logitbank.tasks.encoding import ExampleEncoder
from logitbank.tasks.prompts import EncodedPrompt, PromptEncoder

METHOD = "teacher_forced"  # of the rows


@dataclass(frozen=True)
class Forced:
    """A question as token ids.

    Attributes:
        question: the question.
        names: of the sequences made of it, as a store has them.
        plain: those sequences, as a student learns from them.
        read: the same answers as the model reads them, after demonstrations if there are any.
        demonstrations: how many it reads.
        prompt: after which the last answer is generated; None if it does not fit.
    """

    question: Question
    names: Sequence[str]
    plain: Sequence[AnsweredSequence]
    read: Sequence[AnsweredSequence]
    demonstrations: int
    prompt: EncodedPrompt | None

    @property
    def last_answer(self) -> int:
        """Tokens of the last answer."""
        return self.plain[-1].spans[-1].length


def forced_protocol(config: Config, task: str, reference: Reference | None) -> list[object]:
    """What decides which tokens of an example are scored, and after what context, besides the example and the model."""
    template = reference.store.info.teacher_template if reference is not None else None
    return [config.chat.turns, config.chat.thinking, _longest(config, task), template]


def _longest(config: Config, task: str) -> int:
    given: int | None = config.data.max_student_tokens
    return int(TASKS[task].max_student_tokens) if given is None else given


def teacher_of(reference: Reference | None, asked: Sequence[Forced]) -> Teacher | None:
    """What the teacher said of the answers; None without one.

    Raises:
        StoreError: its store holds other sequences.
    """
    if reference is None:
        return None
    return reference.teacher_of([pair for item in asked for pair in zip(item.names, item.plain, strict=True)])


def encode_forced(
    config: Config,
    encoder: PromptEncoder,
    reference: Reference | None,
    task: str,
    language: str,
    questions: Sequence[Question],
    *,
    context_tokens: int | None,
) -> list[Forced]:
    """The questions of a cell as sequences; what is cut, or left out for its length, is counted.

    Args:
        config: how long sequences may be, and which turns count.
        encoder: of the model.
        reference: what answers will be compared with.
        task: of the cell.
        language: of the cell.
        questions: of the cell.
        context_tokens: longest sequence that the model takes, where known.

    Raises:
        ConfigError: none of them fits.
        TaskError: a template that cannot show what examples hold.
    """
    teacher = reference.teacher_encoder(encoder) if reference is not None else None
    maker = ExampleEncoder(encoder, teacher, data_settings(config).chat)
    behind = ExampleEncoder(encoder, None, data_settings(config).chat)  # the model reads demonstrations itself
    limits = _longest(config, task), config.evaluation.max_prompt_tokens
    longest, room = (limit if context_tokens is None else min(limit, context_tokens) for limit in limits)
    found = []
    for question in questions:
        made = _forced(maker, behind, TASKS[task], question, longest, room)
        if made is not None:
            found.append(made)
    if not found:
        raise ConfigError(f"data.max_student_tokens: no example of {task}/{language} fits in {longest}; raise it")
    said = [f"{count:,} {what}" for what, count in (maker.counts + behind.counts).items()]
    if dropped := len(questions) - len(found):
        said.insert(0, f"dropped {dropped} of {len(questions)} examples")
    if said:
        print(f"{task}/{language}: {', '.join(said)}")
    return found


def _forced(
    maker: ExampleEncoder, behind: ExampleEncoder, task: Task, question: Question, longest: int, room: int
) -> Forced | None:
    """None if it does not fit, with or without demonstrations."""
    example, shown = question.example, question.demonstrations
    made = maker.student(task, example, max_tokens=longest)
    plain = [each.sequence for each in made]
    read, kept = plain, 0
    if shown:
        fitting = [behind.teacher("fewshot", task, example, each, shown, max_tokens=room) for each in made]
        if any(each is None for each in fitting):
            return None
        read = [each.sequence for each in fitting if each is not None]
        kept = min((each.demonstrations for each in fitting if each is not None), default=0)
    if not plain:
        return None
    prompt = behind.generation(task, example, shown, max_tokens=room)
    return Forced(question, [f"{example.example_id}{each.suffix}" for each in made], plain, read, kept, prompt)


def predict_forced(
    config: Config,
    engine: Engine,
    encoder: PromptEncoder,
    identity: Identity,
    teacher: Teacher | None,
    cell: tuple[str, str],
    asked: Sequence[Forced],
    *,
    progress: Callable[[float], object],
) -> list[dict[str, Any]]:
    """Rows of `predictions` for one task in one language; `progress` is called with examples that are ready."""
    task = TASKS[cell[0]]
    generates = config.evaluation.method == "generate"
    sequences = [sequence for item in asked for sequence in item.read]
    share = len(asked) / len(sequences) / (2 if generates else 1)
    scored = iter(engine.score(sequences, teacher, progress=lambda count: progress(count * share)))
    likelihoods = [[next(scored) for _ in item.read] for item in asked]
    answers: Sequence[Answer | None] = [None] * len(asked)
    if generates:
        answers = _generated(config, engine, task, asked, lambda count: progress(count / 2))
    shared = {
        **identity.columns,
        "task": task.name,
        "language": cell[1],
        "split": config.evaluation.split,
        "method": METHOD,
    }
    return [
        {**shared, **_prediction(task, encoder, item, _statistics(parts, teacher is not None), answer)}
        for item, parts, answer in zip(asked, likelihoods, answers, strict=True)
    ]


def _generated(
    config: Config, engine: Engine, task: Task, asked: Sequence[Forced], progress: Callable[[float], object]
) -> list[Answer]:
    """The last answer of each example as the model writes it; empty and cut short where its prompt leaves no room."""
    limit = config.evaluation.max_new_tokens.get(task.name)
    if limit is None:
        limit = min(task.max_new_tokens, max(item.last_answer for item in asked))
    room = None if engine.context_tokens is None else engine.context_tokens - limit
    fits = [item.prompt is not None and (room is None or len(item.prompt.ids) <= room) for item in asked]
    requests = [
        Request(item.prompt.ids, limit)
        for item, fit in zip(asked, fits, strict=True)
        if fit and item.prompt is not None
    ]
    progress(len(asked) - len(requests))
    if len(requests) < len(asked):
        print(f"{task.name}: no answer generated for {len(asked) - len(requests)} of {len(asked)}, too long a prompt")
    written = iter(engine.generate(requests, progress=progress) if requests else [])
    return [next(written) if fit else Answer("", cut_short=True) for fit in fits]


def _statistics(parts: Sequence[Likelihood], compared: bool) -> dict[str, float]:
    """Sums over an example's sequences, as `tasks.scoring.likelihood` names them."""
    sums = {name: float(sum(asdict(part)[name] for part in parts)) for name in asdict(parts[0])}
    found = {name: sums[name] for name in ("tokens", "negative_log_likelihood")}
    found["correct_tokens"] = sums["correct"]
    if compared:
        found |= {"compared_tokens": sums["compared"], "kl": sums["kl"], "agreeing_tokens": sums["agreement"]}
    return found


def _prediction(
    task: Task, encoder: PromptEncoder, item: Forced, sums: Mapping[str, float], answer: Answer | None
) -> dict[str, Any]:
    example_id, question, gold = asked_and_gold(task, item.question.example)
    text = "" if answer is None else answer.text
    statistics = dict(sums)
    if answer is not None:
        statistics |= task.statistics(text, task.reference(item.question.example), item.question.example.language)
    digest = hashlib.sha256()
    for sequence in item.read:
        digest.update(np.asarray(sequence.ids, dtype="<i4").tobytes())
    parsed = None if answer is None else task.parse(text)
    return {
        "example_id": example_id,
        "prompt_hash": digest.hexdigest()[:16],
        "demonstrations": item.demonstrations,
        "demonstrations_wanted": len(item.question.demonstrations),
        "prompt": encoder.tokenizer.decode(item.read[-1].prompt_ids if item.prompt is None else item.prompt.ids),
        "question": question,
        "output": text,
        "cut_short": None if answer is None else answer.cut_short,
        "parsed": None if parsed is None else json.dumps(parsed, ensure_ascii=False, default=str),
        "gold": gold,
        "score": float(task.metrics(sums)[task.primary_metric]),
        "statistics": statistics,
    }
