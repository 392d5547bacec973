"""One cell: prompts out of questions, answers out of prompts, rows of `predictions` and `metrics` out of answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitbank.configs import Config, ConfigError, data_settings
from logitbank.evaluation.engines.base import Answer, Engine, Request
from logitbank.evaluation.identity import Identity
from logitbank.evaluation.questions import Contents, Question, asked_and_gold
from logitbank.tasks import TASKS, Task
from logitbank.tasks.common import metrics_of
from logitbank.tasks.data import protocol_of
from logitbank.tasks.prompts import EncodedPrompt, PromptEncoder
from logitbank.tasks.scoring.likelihood import NATS, OF_A_TEACHER

SHARED_COLUMNS = ("run", "model", "condition", "checkpoint", "step", "seed", "task", "language", "split", "method")


@dataclass(frozen=True)
class Asked:
    """A question with its prompt."""

    question: Question
    prompt: EncodedPrompt


def encode_questions(
    config: Config,
    encoder: PromptEncoder,
    task: str,
    language: str,
    questions: Sequence[Question],
    *,
    context_tokens: int | None,
    max_new_tokens: int,
) -> list[Asked]:
    """The questions of a cell with their prompts; those whose query alone is too long are left out and counted.

    Args:
        config: `evaluation.max_prompt_tokens` limits prompts.
        encoder: of the model.
        task: of the cell.
        language: of the cell.
        questions: of the cell.
        context_tokens: longest prompt and answer together that the model takes, where known.
        max_new_tokens: longest answer.

    Raises:
        ConfigError: none of them fits.
    """
    room = config.evaluation.max_prompt_tokens
    if context_tokens is not None:
        room = min(room, context_tokens - max_new_tokens)
    asked = []
    for question in questions:
        prompt = encoder.encode_prompt(TASKS[task], question.example, question.demonstrations, max_tokens=room)
        if prompt is not None:
            asked.append(Asked(question, prompt))
    if not asked:
        raise ConfigError(f"evaluation.max_prompt_tokens: no question of {task}/{language} fits in {room}; raise it")
    if dropped := len(questions) - len(asked):
        print(f"{task}/{language}: dropped {dropped} of {len(questions)} examples because the query itself is too long")
    return asked


def predict(
    config: Config,
    engine: Engine,
    encoder: PromptEncoder,
    identity: Identity,
    cell: tuple[str, str],
    asked: Sequence[Asked],
    *,
    max_new_tokens: int,
    progress: Callable[[float], object],
) -> list[dict[str, Any]]:
    """Rows of `predictions` for one task in one language; `progress` is called with answers that are ready."""
    task = TASKS[cell[0]]
    prompts = [item.prompt for item in asked]
    if config.evaluation.method == "generate":
        requests = [Request(prompt.ids, max_new_tokens) for prompt in prompts]
        answers: Sequence[Answer | str] = engine.generate(requests, progress=progress)
    else:
        answers = _likeliest_labels(engine, encoder, task, prompts, progress)
    protocol = protocol_of(task.name, data_settings(config))
    shared = {
        **identity.columns,
        "task": task.name,
        "language": cell[1],
        "split": config.evaluation.split,
        "method": config.evaluation.method,
    }
    rows = []
    for item, answer in zip(asked, answers, strict=True):
        text, cut_short = (answer.text, answer.cut_short) if isinstance(answer, Answer) else (answer, None)
        own = _prediction(task, item, text, protocol)
        prompt_text = encoder.tokenizer.decode(item.prompt.ids)
        rows.append({**shared, **own, "cut_short": cut_short, "prompt": prompt_text})
    return rows


def metric_rows(
    predictions: Sequence[Mapping[str, Any]], contents: Contents, against: str | None = None
) -> list[dict[str, Any]]:
    """Rows of `metrics` from the prediction rows of one cell.

    Args:
        predictions: of the cell.
        contents: what it asks.
        against: the teacher that answers were compared with.
    """
    first = predictions[0]
    task = TASKS[first["task"]]
    shared = {name: first[name] for name in SHARED_COLUMNS}
    values = metrics_of(task, [dict(row["statistics"]) for row in predictions])
    if shared["method"] == "likelihood":  # there is nothing to parse, and no average may mix the two ways
        values = {f"likelihood_{task.primary_metric}": values[task.primary_metric]}
    about = {
        "examples": len(predictions),
        "examples_hash": contents.examples_hash,
        "demonstrations_hash": contents.demonstrations_hash,
        **{name: _mean(predictions, name) for name in ("demonstrations", "demonstrations_wanted", "cut_short")},
    }
    return [
        {
            **shared,
            **about,
            "metric": metric,
            "value": value,
            "is_primary": metric == task.primary_metric,
            "against": against if metric in OF_A_TEACHER else None,
        }
        for metric, value in values.items()
    ]


def cell_line(condition: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    """One finished cell, to read: `distilled nli/en  accuracy 33.4  parse failures 1.2%  500 examples`."""
    primary = next((row for row in metrics if row["is_primary"]), metrics[0])
    failures = next((row["value"] for row in metrics if row["metric"] == "parse_failure"), None)
    parts = [f"{condition} {primary['task']}/{primary['language']}"]
    parts.append(f"{primary['metric']} {100 * primary['value']:.1f}")
    parts += [f"{row['metric']} {row['value']:.4f}" for row in metrics if row["metric"] in NATS]
    if failures is not None:
        parts.append(f"parse failures {100 * failures:.1f}%")
    if primary["cut_short"]:
        parts.append(f"cut short {100 * primary['cut_short']:.1f}%")
    if (wanted := primary["demonstrations_wanted"]) and primary["demonstrations"] < wanted:
        parts.append(f"demonstrations {primary['demonstrations']:.2f} of {wanted:g}")
    parts.append(f"{primary['examples']} examples")
    return "  ".join(parts)


def _likeliest_labels(
    engine: Engine,
    encoder: PromptEncoder,
    task: Task,
    prompts: Sequence[EncodedPrompt],
    progress: Callable[[float], object],
) -> list[str]:
    """The label that the model finds likeliest after each prompt, end of turn included."""
    labels = task.labels
    endings = [encoder.encode_answer(label) for label in labels]
    logprobs = engine.answer_logprobs(
        [prompt.ids for prompt in prompts for _ in labels],
        endings * len(prompts),
        progress=lambda pairs: progress(pairs / len(labels)),
    )
    scores = np.asarray(logprobs).reshape(len(prompts), len(labels))
    return [labels[index] for index in scores.argmax(axis=1)]


def _prediction(task: Task, item: Asked, output: str, protocol: str | None) -> dict[str, Any]:
    example = item.question.example
    example_id, question, gold = asked_and_gold(task, example)
    statistics = task.statistics(output, task.reference(example), example.language, protocol)
    parsed = task.parse(output)
    return {
        "example_id": example_id,
        "prompt_hash": hashlib.sha256(np.asarray(item.prompt.ids, dtype="<i4").tobytes()).hexdigest()[:16],
        "demonstrations": item.prompt.demonstrations,
        "demonstrations_wanted": len(item.question.demonstrations),
        "question": question,
        "output": output,
        "parsed": None if parsed is None else json.dumps(parsed, ensure_ascii=False, default=str),
        "gold": gold,
        "score": float(task.metrics(statistics)[task.primary_metric]),
        "statistics": statistics,
    }


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean over rows; None if a row does not say."""
    values = [row[name] for row in rows]
    return None if any(value is None for value in values) else float(np.mean(values))
