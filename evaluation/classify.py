"""Evaluate models of preferences: class probabilities of comparisons, calibrated where a temperature was fitted.

It is one cell, `preference/und`, named, written and resumed as those of other tasks are.

Shape letters: N comparisons, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError, counted
from logitbank.evaluation.calibrating import applied, calibrate
from logitbank.evaluation.calibration import Calibration, tempered
from logitbank.evaluation.comparisons import HELD_OUT, Comparisons, evaluated_comparisons, gold_of, text_of
from logitbank.evaluation.finished import cell_name, latest_generation, write_run
from logitbank.evaluation.identity import Identity, identify
from logitbank.evaluation.opened import Classification, Opened, open_classification
from logitbank.evaluation.pair_scores import PairScores, ScorerOpener, open_scorer
from logitbank.evaluation.predictions import metric_rows
from logitbank.preference import CLASSES, TASK
from logitbank.storage.results import read_rows, write_rows
from logitbank.tasks.common import UNDETERMINED
from logitbank.tasks.scoring.classes import class_statistics

METHOD = "classify"
CELL = (TASK, UNDETERMINED)

Floats = NDArray[np.float64]


def classify_all(jobs: Sequence[Classification], *, opener: ScorerOpener = open_scorer) -> list[Identity]:
    """Evaluate several models or checkpoints one after the other; print one line for each.

    A model is loaded only where something is left to do. An evaluation is finished where its rows are there, and
    what they answer is what would be asked now.

    Args:
        jobs: what to evaluate.
        opener: opens the model of each.

    Returns:
        What each is called; nothing for any worker but the first.

    Raises:
        ConfigError, TaskError: a model, head or split that cannot be opened; a temperature that was fitted with
            something else, or would be on rows that the model knows.
        StoreError: a torn result file in the way.
        OutputError: result files or a calibration that cannot be written.
    """
    found = []
    for job in jobs:
        if job.worker is not None and job.worker.index > 0:
            print(f"{job.worker}: all comparisons are one cell, which worker 0 evaluates")
            continue
        if len(jobs) > 1 and job.checkpoint is not None:
            print(f"step {job.checkpoint.step}: {job.checkpoint.path}")
        found.append(_classify(job, opener))
    return found


def _classify(job: Classification, opener: ScorerOpener) -> Identity:
    opened = open_classification(job, opener)
    opened = dataclasses.replace(opened, scorer=functools.cache(opened.scorer))  # for the temperature and the rows
    on_folds = job.calibrate and job.config.evaluation.split != HELD_OUT  # then the store is for nothing else
    comparisons = evaluated_comparisons(opened.job.config, job.checkpoint, None if on_folds else job.store)
    if job.calibrate:
        calibrate(opened, opener)
    calibration = applied(opened)
    identity = _identity(opened, comparisons, calibration)
    name = cell_name(identity, CELL)
    rows = read_rows(job.results, "predictions", name)
    if rows is not None and (not comparisons.labelled or read_rows(job.results, "metrics", name) is not None):
        print(f"{job.condition} {'/'.join(CELL)}: is already finished, skipped")
        return identity
    started = time.monotonic()
    if rows is None:
        scores = opened.score(job.condition, comparisons)
        rows = _prediction_rows(opened, identity, comparisons, scores, calibration)
        write_run(job.results, identity)
        write_rows(job.results, "predictions", rows, name)
    else:
        _require_same(job.results, name, rows, comparisons)
    said = f"{job.condition} {'/'.join(CELL)}"
    if comparisons.labelled:
        metrics = metric_rows(rows, comparisons.contents)
        write_rows(job.results, "metrics", metrics, name)
        said += f"  {_figures({row['metric']: row['value'] for row in metrics})}"
    else:
        said += "  no labels, so no metrics; query-results submission takes the predictions"
    print(f"{said}  {counted(len(rows), 'comparison')} in {time.monotonic() - started:.1f} s", flush=True)
    return identity


def _identity(opened: Opened, comparisons: Comparisons, calibration: Calibration | None) -> Identity:
    """What the rows are called: a temperature belongs to its weights, so only what kind of rows fitted it is shared."""
    job = opened.job
    own: dict[str, Any] = {}
    if calibration is not None:
        own["calibration"] = [calibration.temperature, calibration.calibration.examples_hash]
    if not comparisons.labelled:
        own["examples"] = comparisons.contents.examples_hash  # no metric says what they were
    shared: dict[str, Any]
    if calibration is None or calibration.fitted_on.split == "validation":
        shared = {"calibrated": calibration is not None}
    else:
        shared = {"calibrated": calibration.fitted_on.split}
    identity = identify(job.config, job.condition, job.checkpoint, opened.model, shared=shared, own=own)
    return latest_generation(job.results, identity, {CELL: comparisons.contents})


def _prediction_rows(
    opened: Opened,
    identity: Identity,
    comparisons: Comparisons,
    scores: PairScores,
    calibration: Calibration | None,
) -> list[dict[str, Any]]:
    """Rows of `predictions`, one a comparison, in their order."""
    config, tokenizer = opened.job.config, opened.tokenizer
    raw_NC = np.exp(scores.averaged_NC)
    p_NC = raw_NC if calibration is None else np.exp(tempered(scores.averaged_NC, calibration.temperature))
    columns = _by_class("p", p_NC) | _by_class("raw", raw_NC)
    if scores.swapped_NC is not None:
        columns |= _by_class("given", np.exp(scores.given_NC)) | _by_class("swapped", np.exp(scores.swapped_NC))
    if comparisons.labelled:
        columns |= class_statistics(p_NC, comparisons.targets_NC)
    cut_N = np.array([packed.cut for packed in scores.longest], dtype=np.float64)
    columns["cut_tokens"] = cut_N
    if cut := int((cut_N > 0).sum()):
        tokens = config.evaluation.tta_tokens[-1]
        print(f"{TASK}: {cut:,} of {counted(len(cut_N), 'comparison')} cut to {tokens:,} tokens")
    shared = {
        **identity.columns,
        "task": TASK,
        "language": UNDETERMINED,
        "split": config.evaluation.split,
        "method": METHOD,
        "demonstrations": 0,
        "demonstrations_wanted": 0,
        "cut_short": None,  # nothing is generated
    }
    rows = []
    for index, (pair, packed) in enumerate(zip(comparisons.pairs, scores.longest, strict=True)):
        statistics = {name: float(values[index]) for name, values in columns.items()}
        rows.append(
            {
                **shared,
                "example_id": pair.example_id,
                "cluster": f"{pair.prompt_key:016x}",
                "prompt_hash": hashlib.sha256(np.asarray(packed.ids, dtype="<i4").tobytes()).hexdigest()[:16],
                "prompt": tokenizer.decode(packed.ids),
                "question": text_of(pair),
                "output": json.dumps(dict(zip(CLASSES, p_NC[index].tolist(), strict=True))),
                "parsed": json.dumps(CLASSES[int(p_NC[index].argmax())]),
                "gold": gold_of(pair),
                "score": -statistics["log_loss"] if comparisons.labelled else None,
                "statistics": statistics,
            }
        )
    return rows


def _by_class(kind: str, values_NC: Floats) -> dict[str, Floats]:
    return {f"{kind}_{name}": values_NC[:, column] for column, name in enumerate(CLASSES)}


def _require_same(results: Path, name: str, rows: Sequence[Mapping[str, Any]], comparisons: Comparisons) -> None:
    """Refuse predictions of an interrupted run on other data.

    Raises:
        StoreError: says which file to delete.
    """
    asked = [(pair.example_id, text_of(pair), gold_of(pair)) for pair in comparisons.pairs]
    if [(row["example_id"], row["question"], row["gold"]) for row in rows] != asked:
        raise StoreError(
            f"{results / 'predictions' / name}.parquet: left by an interrupted run on different data; delete it and "
            "run the same command again"
        )


def _figures(metrics: Mapping[str, float]) -> str:
    """`log_loss 1.0312  accuracy 44.1  brier 0.6204  ece 3.2`."""
    percent = ("accuracy", "ece")
    return "  ".join(
        f"{name} {100 * value:.1f}" if name in percent else f"{name} {value:.4f}" for name, value in metrics.items()
    )
