"""Evaluate one model on a grid of tasks and languages, cell by cell, each finished cell kept."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from logitbank.configs import Config, ConfigError
from logitbank.errors import StoreError
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.evaluation.engines.base import Engine, Request, open_engine
from logitbank.evaluation.identity import Identity, identify
from logitbank.models.workers import Worker
from logitbank.storage.results.rows import write_rows
from logitbank.tasks import TASKS, Example, Task
from logitbank.tasks.common import metrics_of
from logitbank.tasks.data import cells, demonstration_pool, get_source, load_examples
from logitbank.tasks.demonstrations import draw_demonstrations
from logitbank.tasks.prompts import EncodedPrompt, PromptEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate and where its rows go.

    Attributes:
        config: the whole configuration.
        condition: name under which the rows appear; `fewshot` shows demonstrations, no other does.
        checkpoint: the trained weights, or None for the base model.
        results: directory of the result rows.
        worker: which share of the cells is this process's; None does all.
    """

    config: Config
    condition: str
    checkpoint: Checkpoint | None
    results: Path
    worker: Worker | None = None


def evaluate(job: Evaluation, *, opener: Callable[[Config, Checkpoint | None], Engine] = open_engine) -> Identity:
    """Evaluate all cells that exist and are not finished yet; print one line for each.

    The model is loaded only where a cell is left to do.

    Raises:
        ConfigError, TaskError: a task in none of the languages, a model that cannot be opened.
        StoreError: result files that cannot be written, or a torn one in the way.
    """
    grid = cells(_tasks(job.config), job.config.languages)
    if grid.absent:
        print(f"not evaluated, these do not exist: {', '.join(f'{t}/{lang}' for t, lang in grid.absent)}")
    identity = identify(job.config, job.condition, job.checkpoint)
    mine = grid.present[job.worker.index :: job.worker.count] if job.worker else grid.present
    if job.worker:
        print(f"{job.worker}: {len(mine)} of {len(grid.present)} cells")
    pending = [cell for cell in mine if not _result_file(job, "metrics", identity, cell).exists()]
    if done := len(mine) - len(pending):
        print(f"{job.condition}: {done} of {len(mine)} cells are finished already and skipped")
    engine: Engine | None = None
    for number, cell in enumerate(pending, start=done + 1):
        started = time.monotonic()
        rows = _finished_predictions(job, identity, cell)
        if rows is None:
            engine = engine or opener(job.config, job.checkpoint)
            asked = ask_cell(job, engine, cell)
            _write_run(job, identity)  # not before: of what cannot be opened nothing is left; and not after hours
            rows = predict_cell(job, identity, engine, cell, asked)
            write_rows(job.results, "predictions", rows, _file_name(identity, cell))
        metrics = metric_rows(rows, TASKS[cell[0]])
        write_rows(job.results, "metrics", metrics, _file_name(identity, cell))
        seconds = time.monotonic() - started
        print(f"[{number}/{len(mine)}] {cell_line(job.condition, metrics)} in {seconds:.1f} s", flush=True)
    return identity


Asked = list[tuple[Example, EncodedPrompt]]


def ask_cell(job: Evaluation, engine: Engine, cell: tuple[str, str]) -> Asked:
    """The examples of one task in one language, each with its prompt.

    Raises:
        ConfigError: no example of the cell fits into the model.
    """
    task, config = TASKS[cell[0]], job.config
    examples = load_examples(
        task.name,
        config.evaluation.split,
        cell[1],
        source=config.data.sources.get(task.name),
        mirror=config.data.mirror,
        limit=config.evaluation.max_samples,
        seed=config.evaluation.sample_seed,
    )
    asked = _encode_prompts(job, engine, task, examples)
    if not asked:
        raise ConfigError(f"data.max_teacher_tokens: no example of {cell[0]}/{cell[1]} fits into it; raise it")
    if dropped := len(examples) - len(asked):
        print(f"{cell[0]}/{cell[1]}: dropped {dropped} of {len(examples)} examples whose query alone is too long")
    return asked


def predict_cell(
    job: Evaluation, identity: Identity, engine: Engine, cell: tuple[str, str], asked: Asked
) -> list[dict[str, Any]]:
    """Rows of `predictions` for one task in one language."""
    task, config = TASKS[cell[0]], job.config
    max_new_tokens = _max_new_tokens(config, task)
    with tqdm(desc=f"{cell[0]}/{cell[1]}", unit="answer", leave=False, disable=not sys.stderr.isatty()) as bar:
        outputs = _answers(engine, task, [prompt for _, prompt in asked], max_new_tokens, config, bar)
    protocol = get_source(task.name, config.data.sources.get(task.name)).protocol
    shared = {
        **identity.columns,
        "task": task.name,
        "language": cell[1],
        "split": config.evaluation.split,
        "method": config.evaluation.method,
    }
    rows = []
    for (example, prompt), output in zip(asked, outputs, strict=True):
        own = _prediction(task, example, prompt, output, protocol)
        rows.append({**shared, **own, "prompt": engine.tokenizer.decode(prompt.ids)})
    return rows


def metric_rows(predictions: Sequence[Mapping[str, Any]], task: Task) -> list[dict[str, Any]]:
    """Rows of `metrics` from the prediction rows of one cell; those by likelihood have names of their own."""
    shared = {
        name: predictions[0][name]
        for name in ("run", "model", "condition", "checkpoint", "step", "seed", "task", "language", "split", "method")
    }
    statistics = [dict(row["statistics"]) for row in predictions]
    by_likelihood = shared["method"] == "likelihood"
    values = metrics_of(task, statistics)
    if by_likelihood:  # there is nothing to parse, and no average may mix the two ways
        values = {f"likelihood_{task.primary_metric}": values[task.primary_metric]}
    return [
        {
            **shared,
            "metric": metric,
            "value": value,
            "is_primary": metric == task.primary_metric,
            "examples": len(predictions),
        }
        for metric, value in values.items()
    ]


def cell_line(condition: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    """One finished cell, to read: `distilled nli/en  accuracy 33.4  parse failures 1.2%  500 examples`."""
    primary = next((row for row in metrics if row["is_primary"]), metrics[0])
    failures = next((row["value"] for row in metrics if row["metric"] == "parse_failure"), None)
    parsed = "" if failures is None else f"  parse failures {100 * failures:.1f}%"
    name = f"{condition} {primary['task']}/{primary['language']}"
    return f"{name}  {primary['metric']} {100 * primary['value']:.1f}{parsed}  {primary['examples']} examples"


def _tasks(config: Config) -> list[str]:
    """The tasks that can be scored by the method asked for; others are named, all of them an error."""
    if config.evaluation.method == "generate":
        return config.tasks
    with_labels = [name for name in config.tasks if TASKS[name].labels]
    if not with_labels:
        raise ConfigError(
            f"evaluation.method: likelihood compares the labels of a task, and {', '.join(config.tasks)} "
            f"have none; tasks with labels are {', '.join(name for name, task in TASKS.items() if task.labels)}"
        )
    if others := [name for name in config.tasks if name not in with_labels]:
        print(f"not scored by likelihood, these have no labels: {', '.join(others)}")
    return with_labels


def _answers(
    engine: Engine, task: Task, prompts: Sequence[EncodedPrompt], max_new_tokens: int, config: Config, bar: Any
) -> list[str]:
    """The model's answer to each prompt: generated, or the label it finds likeliest, end of turn included."""
    labels = task.labels
    if config.evaluation.method == "generate":
        bar.reset(len(prompts))
        return engine.generate([Request(prompt.ids, max_new_tokens) for prompt in prompts], progress=bar.update)
    encoder = PromptEncoder(engine.tokenizer)
    endings = [encoder.encode_answer(label) for label in labels]
    bar.reset(len(prompts) * len(labels))
    logprobs = engine.answer_logprobs(
        [prompt.ids for prompt in prompts for _ in labels], endings * len(prompts), progress=bar.update
    )
    scores = np.asarray(logprobs).reshape(len(prompts), len(labels))
    return [labels[index] for index in scores.argmax(axis=1)]


def _max_new_tokens(config: Config, task: Task) -> int:
    return config.evaluation.max_new_tokens.get(task.name, task.max_new_tokens)


def _encode_prompts(job: Evaluation, engine: Engine, task: Task, examples: Sequence[Example]) -> Asked:
    """Each example with its prompt; examples whose query alone does not fit are left out."""
    config = job.config
    encoder = PromptEncoder(engine.tokenizer)
    room = min(config.data.max_teacher_tokens, engine.context_tokens or config.data.max_teacher_tokens)
    count = config.fewshot.num_demonstrations.get(task.name, task.num_demonstrations)
    pool: list[Example] = []
    if job.condition == "fewshot" and examples:
        pool = demonstration_pool(
            task.name,
            examples[0].language,
            stage="eval",
            source=config.data.sources.get(task.name),
            mirror=config.data.mirror,
        )
    asked = []
    for example in examples:
        demonstrations: list[Example] = []
        if job.condition == "fewshot":
            demonstrations = draw_demonstrations(
                pool, example, count, seed=config.seed, selection=config.fewshot.selection
            )
        prompt = encoder.encode_prompt(task, example, demonstrations, max_tokens=room - _max_new_tokens(config, task))
        if prompt is not None:
            asked.append((example, prompt))
    return asked


def _prediction(
    task: Task, example: Example, prompt: EncodedPrompt, output: str, protocol: str | None
) -> dict[str, Any]:
    reference = task.reference(example)
    statistics = task.statistics(output, reference, example.language, protocol)
    parsed = task.parse(output)
    return {
        "example_id": example.example_id,
        "prompt_hash": hashlib.sha256(np.asarray(prompt.ids, dtype="<i4").tobytes()).hexdigest()[:16],
        "demonstrations": prompt.demonstrations,
        "question": task.user_message(example),
        "output": output,
        "parsed": None if parsed is None else json.dumps(parsed, ensure_ascii=False, default=str),
        "gold": json.dumps(reference, ensure_ascii=False),
        "score": float(task.metrics(statistics)[task.primary_metric]),
        "statistics": statistics,
    }


def _finished_predictions(job: Evaluation, identity: Identity, cell: tuple[str, str]) -> list[dict[str, Any]] | None:
    """Predictions of a cell that was interrupted between its two files."""
    path = _result_file(job, "predictions", identity, cell)
    return pq.ParquetFile(path).read().to_pylist() if path.exists() else None


def _file_name(identity: Identity, cell: tuple[str, str]) -> str:
    return f"{identity.run}@{cell[0]}.{cell[1]}"


def _result_file(job: Evaluation, table: str, identity: Identity, cell: tuple[str, str]) -> Path:
    return job.results / table / f"{_file_name(identity, cell)}.parquet"


def _write_run(job: Evaluation, identity: Identity) -> None:
    """The row of `runs`, unless it is there: it holds the time at which the first worker began."""
    path = job.results / "runs" / f"{identity.run}.parquet"
    if path.exists():
        return
    try:
        write_rows(job.results, "runs", [identity.run_row], identity.run)
    except StoreError:
        if not path.exists():
            raise
