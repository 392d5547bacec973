"""What a cell asks: its examples, their demonstrations, and how long an answer may be; known before any model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.configs import Config, ConfigError, data_settings
from logitbank.experiment import CONDITIONS
from logitbank.tasks import TASKS, DataSettings, Example, Task
from logitbank.tasks.conversations import Conversation
from logitbank.tasks.data import demonstration_pool, load_examples
from logitbank.tasks.demonstrations import draw_demonstrations
from logitbank.tasks.outside import source_hash
from logitbank.tasks.prompts import PromptEncoder
from logitbank.tasks.scoring.likelihood import LikelihoodScores


@dataclass(frozen=True)
class Question:
    """One example of a cell.

    Attributes:
        example: what is asked.
        demonstrations: to be shown before it, as many as wanted.
    """

    example: Example
    demonstrations: Sequence[Example] = ()


@dataclass(frozen=True)
class Contents:
    """What a cell asks, in short: equal for two evaluations that ask the same.

    Attributes:
        examples: how many.
        examples_hash: of ids, questions and gold answers, in the order they are asked; for a task from outside, a
            plus and the hash of its source, which reads and scores what is answered, follow.
        demonstrations_hash: of what is shown before them, system prompt included.
    """

    examples: int
    examples_hash: str
    demonstrations_hash: str


def shows_demonstrations(condition: str) -> bool:
    """Whether prompts of a condition hold demonstrations; those of a name of one's own do not."""
    known = CONDITIONS.get(condition)
    return known is not None and known.demonstrations


def is_forced(task: str) -> bool:
    """Whether a task is scored by the likelihood of its gold answers, teacher-forced."""
    return isinstance(TASKS[task], LikelihoodScores)


def check_demonstrations(config: Config, condition: str, tasks: Iterable[str]) -> None:
    """Refuse a few-shot evaluation without a shot.

    Raises:
        ConfigError: names the task.
    """
    for task in tasks if shows_demonstrations(condition) else ():
        if wanted_demonstrations(config, task) < 1:
            raise ConfigError(
                f"fewshot.num_demonstrations.{task}: expected at least 1 with --condition {condition}, got 0; raise "
                "it, remove the task, or evaluate --condition base"
            )


def wanted_demonstrations(config: Config, task: str) -> int:
    """How many demonstrations a few-shot prompt of a task should show."""
    return config.fewshot.num_demonstrations.get(task, TASKS[task].num_demonstrations)


def draw_questions(config: Config, condition: str, task: str, language: str) -> list[Question]:
    """The questions of a cell: examples drawn by `evaluation.sample_seed`, demonstrations by `seed`.

    Raises:
        TaskError: data that cannot be opened, or too few demonstrations.
    """
    data = data_settings(config, seed=config.evaluation.sample_seed)
    limit = config.evaluation.max_samples
    examples = load_examples(
        task, config.evaluation.split, language, data, limit=limit, limited_by="evaluation.max_samples"
    )
    if not shows_demonstrations(condition):
        return [Question(example) for example in examples]
    pool = demonstration_pool(task, language, data, stage="eval")
    count, selection = wanted_demonstrations(config, task), config.fewshot.selection
    return [
        Question(example, draw_demonstrations(pool, example, count, seed=config.seed, selection=selection))
        for example in examples
    ]


def contents_of(task: Task, questions: Sequence[Question], protocol: Sequence[object] = ()) -> Contents:
    """What the questions of a cell are, in short.

    Args:
        task: of the cell.
        questions: of the cell.
        protocol: what else decides which tokens of them are scored.
    """
    asked = [asked_and_gold(task, question.example) for question in questions]
    shown = [[_shown(task, example) for example in question.demonstrations] for question in questions]
    return contents_of_asked(asked, [task.system_prompt, shown], protocol, source_hash(task))


def contents_of_asked(
    asked: Sequence[tuple[str, str, str | None]],
    shown: Any = (),
    protocol: Sequence[object] = (),
    source: str | None = None,
) -> Contents:
    """What is asked, in short.

    Args:
        asked: id, question and gold answer of each example.
        shown: system prompt and demonstrations.
        protocol: what else decides which tokens are scored.
        source: hash of the source of a task from outside.
    """
    hashed = _hash([*asked, list(protocol)] if protocol else asked)
    return Contents(len(asked), hashed if source is None else f"{hashed}+{source}", _hash(shown))


def _shown(task: Task, example: Example) -> list[str]:
    if _conversation(example) is not None:
        return list(asked_and_gold(task, example)[1:])
    return [task.user_message(example), example.answer]


def asked_and_gold(task: Task, example: Example) -> tuple[str, str, str]:
    """An example as rows of `predictions` have it: id, the user's turn, and the reference as JSON.

    Of a conversation the second is JSON of all `messages` but the last and of the `tools`, the third the last message.
    """
    if (conversation := _conversation(example)) is not None:
        before = {"messages": conversation.messages[:-1], "tools": conversation.tools}
        return example.example_id, _json(before), _json(conversation.messages[-1])
    return example.example_id, task.user_message(example), _json(task.reference(example))


def _conversation(example: Example) -> Conversation | None:
    found = example.fields.get("conversation")
    return found if isinstance(found, Conversation) else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def answer_limit(config: Config, encoder: PromptEncoder, task: str, language: str) -> int:
    """Most tokens that an answer may have.

    What `evaluation.max_new_tokens` says; otherwise as many as the longest gold answer of the split has,
    its end of turn included, and no fewer than the task's own figure.

    Raises:
        TaskError: data that cannot be opened.
    """
    given = config.evaluation.max_new_tokens.get(task)
    if given is not None:
        return given
    answers = _gold_answers(task, config.evaluation.split, language, data_settings(config))
    own = TASKS[task].max_new_tokens
    # A token is a byte or more, beside the end of turn and a leading space: short answers fit in any tokenizer.
    return max([own, *(len(encoder.encode_answer(text)) for text in answers if len(text.encode()) + 2 > own)])


@functools.lru_cache(maxsize=64)
def _gold_answers(task: str, split: str, language: str, data: DataSettings) -> frozenset[str]:
    """The different gold answers of a split; remembered, since every checkpoint of a command asks."""
    examples = load_examples(task, split, language, data)
    return frozenset(example.answer for example in examples)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()[:16]
