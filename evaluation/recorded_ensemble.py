"""An ensemble as a condition of its own among the result rows, so that tables compare it with what it is made of."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.errors import ConfigError
from logitbank.evaluation.submission import Submission, test_predictions
from logitbank.experiment import CONDITION_NAME, CONDITIONS
from logitbank.preference import CLASSES, TASK
from logitbank.storage.results import Catalogue, read_rows, write_rows
from logitbank.tasks import UNDETERMINED
from logitbank.tasks.scoring.classes import class_metrics, class_statistics

COPIED = ("example_id", "cluster", "prompt_hash", "question", "gold", "split", "method")


def require_name(condition: str) -> None:
    """Refuse a name that means something else already.

    Raises:
        ConfigError: see above.
    """
    if not CONDITION_NAME.fullmatch(condition) or condition in CONDITIONS:
        raise ConfigError(
            f"--record: expected a name of letters, digits and ._+- other than {', '.join(CONDITIONS)}, got {condition}"
        )


def record_ensemble(
    submission: Submission, catalogue: Catalogue, results: Sequence[Path], ensemble: str, condition: str
) -> str:
    """Write the averaged probabilities as rows of `runs`, `predictions` and `metrics`; again changes nothing.

    Args:
        submission: with labels.
        catalogue: of the result directories.
        results: these directories; the first one takes the rows.
        ensemble: how it was weighted.
        condition: under which it appears.

    Returns:
        Name of the run.

    Raises:
        ConfigError: test comparisons without labels.
        OutputError: a directory that cannot be written.
    """
    if not submission.metrics:
        raise ConfigError("--record: expected test comparisons with labels, got some without; leave --record out")
    weights = dict(zip((member.run for member in submission.members), submission.weights, strict=True))
    setup = hashlib.sha256(json.dumps([ensemble, weights], sort_keys=True).encode()).hexdigest()[:10]
    run = f"{condition}-{setup}"
    models = sorted({str(member.row["model"]) for member in submission.members})
    identity = {"run": run, "model": "+".join(models), "condition": condition}
    where = {**identity, "task": TASK, "language": UNDETERMINED, "split": "test", "method": "classify"}
    rows, statistics = _predictions(submission, results, where)
    if read_rows(results[0], "runs", run) is None:
        about = {"config": json.dumps({"ensemble": ensemble, "runs": weights}), "setup": setup}
        created = datetime.datetime.now(datetime.UTC)
        write_rows(results[0], "runs", [{**identity, **about, "kind": "evaluation", "created_at": created}], run)
    write_rows(results[0], "predictions", rows, f"{run}@{TASK}.{UNDETERMINED}")
    values = class_metrics({name: numbers.mean() for name, numbers in statistics.items()})
    (asked,) = catalogue.rows(
        "SELECT any_value(examples_hash) AS examples_hash FROM metrics "
        f"WHERE run = '{submission.members[0].run}' AND method = 'classify'"
    )
    metrics = [
        {**where, **asked, "metric": name, "value": float(value), "is_primary": name == "log_loss"}
        | {"examples": len(rows)}
        for name, value in values.items()
    ]
    write_rows(results[0], "metrics", metrics, f"{run}@{TASK}.{UNDETERMINED}")
    return run


def _predictions(
    submission: Submission, results: Sequence[Path], where: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of `predictions`, and their statistics as arrays."""
    asked = test_predictions(results, submission.members[0].run, COPIED)
    golds = [json.loads(row["gold"]) for row in asked]
    targets_NC = np.array([[gold[name] for name in CLASSES] for gold in golds], dtype=np.float64)
    p_NC = submission.probabilities_NC
    scored = class_statistics(p_NC, targets_NC)
    columns = {f"p_{name}": p_NC[:, column] for column, name in enumerate(CLASSES)} | scored
    rows = []
    for index, row in enumerate(asked):
        statistics = {name: float(values[index]) for name, values in columns.items()}
        answer = {
            "output": json.dumps(dict(zip(CLASSES, p_NC[index].tolist(), strict=True))),
            "parsed": json.dumps(CLASSES[int(p_NC[index].argmax())]),
            "score": -statistics["log_loss"],
            "statistics": statistics,
            "demonstrations": 0,
        }
        rows.append({**row, **where, **answer})
    return rows, scored
