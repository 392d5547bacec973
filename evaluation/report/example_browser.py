"""What the report's example browser shows: answers of every condition, prompts, and the teacher's likeliest tokens."""

from __future__ import annotations

import json
import math
from typing import Any

from logitbank.evaluation.report.labels import Labels, Row, ordered_conditions, ordered_languages, ordered_tasks
from logitbank.evaluation.report.likelihood_table import METRICS
from logitbank.evaluation.report.statistics import CLASSIFIED, FORCED
from logitbank.evaluation.report.units import PERCENT, unit_of
from logitbank.storage import TeacherStore
from logitbank.storage.results import Catalogue
from logitbank.tasks import TASKS

EXAMPLES_PER_CELL = 6
STORE_EXAMPLES_PER_CELL = 3


def browsed_examples(catalogue: Catalogue) -> list[dict[str, Any]]:
    """A few evaluated examples of each cell, and a few that the teacher store was built on.

    Returns:
        Dicts of `task`, `language`, `example_id`, `question`, `gold`, `conversation` (None, or what stands in their
        place), `prompts` (texts), `answers` (of each model and condition, `prompt` an index into `prompts`) and
        `teacher` (for each view and answer position the five likeliest tokens with their probabilities).
    """
    examples = _evaluated(catalogue)
    _add_teachers(catalogue, examples)
    tasks = ordered_tasks(example["task"] for example in examples.values())
    languages = ordered_languages(example["language"] for example in examples.values())
    return sorted(
        examples.values(), key=lambda e: (tasks.index(e["task"]), languages.index(e["language"]), e["example_id"])
    )


def _evaluated(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """A few examples of each cell with every condition's answer, those on which answers differ most."""
    rows = catalogue.rows(
        f"""
        WITH shown AS (
            SELECT p.*, f.setup, f.variant, f.taught_by, f.max_steps FROM predictions AS p
            JOIN final_scores AS f ON f.run = p.run AND f.task = p.task AND f.language = p.language
            WHERE f.is_primary AND f.method = p.method),
        ranked AS (
            SELECT task, language, example_id,
                   row_number() OVER (PARTITION BY task, language
                                      ORDER BY stddev_pop(score) DESC, hash(example_id)) AS place
            FROM shown GROUP BY task, language, example_id)
        SELECT s.task, s.language, s.example_id, s.prompt, s.question, s.gold, s.model, s.condition, s.seed,
               s.setup, s.variant, s.taught_by, s.max_steps,
               s.output, s.parsed, s.score, s.method, s.statistics, s.cut_short
        FROM shown AS s JOIN ranked AS r USING (task, language, example_id)
        WHERE r.place <= {EXAMPLES_PER_CELL}
        """
    )
    order = ordered_conditions(row["condition"] for row in rows)
    labels = Labels.of(rows)
    examples: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (r["model"], order.index(r["condition"]), r["variant"], r["seed"] or 0)):
        example = examples.setdefault(
            row["example_id"],
            {name: row[name] for name in ("task", "language", "example_id", "question", "gold")}
            | {"conversation": _conversation(row), "prompts": [], "answers": [], "teacher": []},
        )
        names = ("condition", "seed", "output", "parsed", "score")
        answer = {"series": labels.series(row), "prompt": _index(example["prompts"], row)}
        answer |= {"scores": _scores(row), "written": row["method"] != FORCED or row["cut_short"] is not None}
        example["answers"].append(answer | {name: row[name] for name in names})
    return examples


def _conversation(row: Row) -> dict[str, Any] | None:
    """Messages before the last answer, that answer, and the tools; None for a question that is a text."""
    if row["method"] != FORCED:
        return None
    try:
        before, answer = json.loads(row["question"]), json.loads(row["gold"])
    except ValueError:  # a task from outside that asks in its own words
        return None
    if not isinstance(before, dict) or not isinstance(answer, dict) or "messages" not in before:
        return None
    return {"messages": before["messages"], "tools": before.get("tools", []), "answer": answer}


def _scores(row: Row) -> str:
    """What an example scored, where that is not right or wrong: `token_accuracy 61.2 %, cross_entropy 1.8321 …`."""
    if row["method"] == CLASSIFIED:
        return f"log_loss {unit_of('log_loss').text(-row['score'])}"
    if row["method"] != FORCED or row["task"] not in TASKS:
        return ""
    metrics = TASKS[row["task"]].metrics(dict(row["statistics"]))
    shown = [(name, metrics[name]) for name in METRICS if name in metrics and name != "perplexity"]
    return ", ".join(
        f"{name} {unit_of(name).text(value)}{'%' if unit_of(name) is PERCENT else ''}" for name, value in shown
    )


def _index(prompts: list[str], row: Row) -> int | None:
    """Place of the row's prompt among those of its example, each kept once; None in rows that came without."""
    if row["prompt"] is None:
        return None
    if row["prompt"] not in prompts:
        prompts.append(row["prompt"])
    return prompts.index(row["prompt"])


def _add_teachers(catalogue: Catalogue, examples: dict[str, dict[str, Any]]) -> None:
    """Add the teacher's tokens to the examples that a store has too, and examples of the stores alone."""
    chosen = catalogue.rows(
        f"""
        SELECT store, task, language, example_id FROM (SELECT DISTINCT store, task, language, example_id
                                                       FROM cache_tokens WHERE sequence IS NULL)
        QUALIFY row_number() OVER (PARTITION BY task, language ORDER BY hash(example_id)) <= {STORE_EXAMPLES_PER_CELL}
        """
    )
    readers = {row["store"]: _StoreReader(row["store"]) for row in chosen}
    for row in chosen:
        if row["example_id"] not in examples:
            question, gold = readers[row["store"]].prompt_and_answer(row["example_id"])
            examples[row["example_id"]] = {
                **{name: row[name] for name in ("task", "language", "example_id")},
                **{"question": question, "gold": gold, "conversation": None},
                **{"prompts": [], "answers": [], "teacher": []},
            }
    wanted = ", ".join("'" + example_id.replace("'", "''") + "'" for example_id in examples)
    tokens = catalogue.rows(
        "SELECT DISTINCT ON (view, example_id, position) * FROM cache_tokens "
        f"WHERE example_id IN ({wanted or 'NULL'}) AND sequence IS NULL ORDER BY view, example_id, position"
    )
    for row in tokens:
        text = readers[row["store"]].text
        top = [[text(token), math.exp(value)] for token, value in zip(row["top_ids"], row["top_logprobs"], strict=True)]
        examples[row["example_id"]]["teacher"].append(
            {"view": row["view"], "position": row["position"], "gold": text(row["token_id"]), "top": top}
        )


class _StoreReader:
    """Texts of one store, by the tokenizer of its model."""

    def __init__(self, url: str) -> None:
        from logitbank.models.huggingface import token_text  # imports transformers: only where a store is shown

        self._store = TeacherStore.open(url)
        self.text = token_text(self._store.info.model)

    def prompt_and_answer(self, example_id: str) -> tuple[str, str]:
        """The student's prompt and the gold answer."""
        table = self._store.examples
        sequence = table.sequence(table.index_of(example_id))
        return self._joined(sequence.prompt_ids), self._joined(sequence.answer_ids)

    def _joined(self, ids: Any) -> str:
        return "".join(self.text(int(token)) for token in ids)
