"""Evaluate models of preferences: class probabilities of comparisons, calibrated where a temperature was fitted.

It is one cell, `preference/und`, named, written and resumed as those of other tasks are.

Shape letters: N comparisons, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import Config, ConfigError
from logitbank.errors import StoreError, counted
from logitbank.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    Calibration,
    Protocol,
    fit_temperature,
    measure,
    require_writable,
    tempered,
)
from logitbank.evaluation.checkpoints import Checkpoint, check_template
from logitbank.evaluation.comparisons import (
    Comparisons,
    calibration_parts,
    evaluated_comparisons,
    gold_of,
    require_unseen,
    text_of,
)
from logitbank.evaluation.finished import cell_name, latest_generation, write_run
from logitbank.evaluation.identity import Encoding, Identity, Model, examine, identify, open_tokenizer
from logitbank.evaluation.pair_scores import (
    LETTERS_HEAD,
    PairScores,
    Scorer,
    ScorerOpener,
    as_read,
    open_scorer,
    packers,
    score_comparisons,
)
from logitbank.evaluation.predictions import metric_rows
from logitbank.evaluation.questions import shows_demonstrations
from logitbank.models.workers import Worker
from logitbank.preference import CLASSES, TASK
from logitbank.progress import Progress
from logitbank.storage.results import read_rows, write_rows
from logitbank.tasks.common import UNDETERMINED
from logitbank.tasks.preference import PairPacker
from logitbank.tasks.prompts import PromptEncoder, tokenizer_hash
from logitbank.tasks.scoring.classes import class_statistics

METHOD = "classify"
CELL = (TASK, UNDETERMINED)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Classification:
    """What to evaluate and where its rows go.

    Attributes:
        config: the whole configuration.
        condition: name under which the rows appear.
        checkpoint: the trained weights, or None for the model itself.
        results: directory of the result rows.
        store: URL of the label store that has the fold of `evaluation.split=held_out`.
        calibrate: whether to fit a temperature first.
        raw: whether a temperature that was fitted is left out.
        worker: the first one does it all.
    """

    config: Config
    condition: str
    checkpoint: Checkpoint | None
    results: Path
    store: str | None = None
    calibrate: bool = False
    raw: bool = False
    worker: Worker | None = None


@dataclass(frozen=True)
class PlainText:
    """How classifiers are asked: without a chat template, by a tokenizer of a language model or of an encoder."""

    tokenizer: Any
    template_hash: None = None

    @property
    def tokenizer_hash(self) -> str:
        """Of all that decides which ids a text gets."""
        return tokenizer_hash(self.tokenizer)


@dataclass(frozen=True)
class Opened:
    """What is evaluated, the model itself still closed.

    Attributes:
        job: the evaluation, its configuration as the model reads it.
        model: its weights and how it is asked.
        tokenizer: of the model.
        packers: one for each length at which it reads.
        scorer: opens the model, once.
    """

    job: Classification
    model: Model
    tokenizer: Any
    packers: Sequence[PairPacker]
    scorer: Callable[[], Scorer]

    @property
    def protocol(self) -> Protocol:
        """What a temperature holds for."""
        evaluation = self.job.config.evaluation
        return Protocol(
            self.model.weights, tuple(evaluation.tta_tokens), evaluation.swap_average, evaluation.load_in_8bit
        )

    def score(self, what: str, comparisons: Comparisons) -> PairScores:
        """Probabilities of comparisons, under a progress bar."""
        pairs, both = comparisons.pairs, self.job.config.evaluation.swap_average
        readings = len(self.packers) * (2 if both else 1)
        with Progress(what, len(pairs) * readings, "readings") as progress:
            return score_comparisons(self.scorer(), self.packers, pairs, progress.advance, swap_average=both)


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
            print(f"{job.worker}: comparisons are one cell, which worker 0 does")
            continue
        if len(jobs) > 1 and job.checkpoint is not None:
            print(f"step {job.checkpoint.step}: {job.checkpoint.path}")
        found.append(_classify(job, opener))
    return found


def _classify(job: Classification, opener: ScorerOpener) -> Identity:
    opened = _open(job, opener)
    comparisons = evaluated_comparisons(opened.job.config, job.checkpoint, job.store)
    if job.calibrate:
        _calibrate(opened)
    calibration = _applied(opened)
    identity = _identity(opened, comparisons, calibration)
    name = cell_name(identity, CELL)
    rows = read_rows(job.results, "predictions", name)
    if rows is not None and (not comparisons.labelled or read_rows(job.results, "metrics", name) is not None):
        print(f"{job.condition} {'/'.join(CELL)}: is finished already and skipped")
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


def _open(job: Classification, opener: ScorerOpener) -> Opened:
    if shows_demonstrations(job.condition):
        raise ConfigError(
            f"--condition: {job.condition} shows demonstrations, and {TASK} has none; use base, or a name of your own"
        )
    if (job.calibrate or job.raw) and job.checkpoint is None:
        option = "--calibrate" if job.calibrate else "--no-calibration"
        raise ConfigError(f"{option}: a temperature lies beside a checkpoint; add --checkpoint DIR")
    config = as_read(job.config, job.checkpoint)
    tokenizer = open_tokenizer(job.config, job.checkpoint)
    encoding: Encoding = PlainText(tokenizer)
    if config.model.head == LETTERS_HEAD:
        encoding = encoder = PromptEncoder(tokenizer)
        check_template(job.checkpoint, encoder.template_hash)
    return Opened(
        dataclasses.replace(job, config=config),
        examine(job.config, job.checkpoint, encoding),
        tokenizer,
        packers(config, job.checkpoint, tokenizer),
        functools.cache(lambda: opener(config, job.checkpoint)),
    )


def _calibrate(opened: Opened) -> None:
    """Fit the temperature and write it beside the weights, unless the one that is there is the same."""
    job = opened.job
    checkpoint = job.checkpoint
    assert checkpoint is not None
    calibration, holdout = calibration_parts(job.config)
    for part, comparisons in (("calibration", calibration), ("holdout", holdout)):
        require_unseen(checkpoint, comparisons, part, "--calibrate")
    require_writable(checkpoint.path)
    hashes = tuple(each.contents.examples_hash for each in (calibration, holdout))
    known = _known(checkpoint)
    if (
        known is not None
        and known.holds_for == opened.protocol
        and (known.calibration.examples_hash, known.holdout.examples_hash) == hashes
    ):
        print("calibration: fitted already on the same rows, weights and settings")
        return
    fitted_on, held_out = (
        opened.score(f"{job.condition}, {part}", each).averaged_NC
        for part, each in (("calibration", calibration), ("holdout", holdout))
    )
    temperature = fit_temperature(fitted_on, calibration.targets_NC)
    found = Calibration(
        temperature,
        opened.protocol,
        measure(fitted_on, calibration.targets_NC, temperature, hashes[0]),
        measure(held_out, holdout.targets_NC, temperature, hashes[1]),
    )
    if found.is_bound:
        print(
            f"warning: the temperature is an end of its range, {LOWEST:g} to {HIGHEST:g}: "
            f"{counted(found.calibration.rows, 'row')} cannot tell one for these probabilities"
        )
    if found.harms_holdout:
        before, after = (figures["log_loss"] for figures in (found.holdout.before, found.holdout.after))
        print(
            f"warning: the temperature makes the holdout rows worse: log loss {before:.4f} to {after:.4f}; the "
            "calibration rows are few or of another kind, and --no-calibration evaluates without it"
        )
    print(f"calibration: wrote {shlex.quote(str(found.write(checkpoint.path)))}")


def _known(checkpoint: Checkpoint) -> Calibration | None:
    """The calibration that is there; None where it is unreadable too, since a new one replaces it."""
    try:
        return Calibration.read(checkpoint.path)
    except ConfigError:
        return None


def _applied(opened: Opened) -> Calibration | None:
    """The temperature beside the checkpoint, after a look at what it was fitted with."""
    job = opened.job
    if job.checkpoint is None or job.raw:
        return None
    found = Calibration.read(job.checkpoint.path)
    if found is None:
        return None
    found.require(job.checkpoint.path, opened.protocol)
    if job.config.evaluation.split in ("calibration", "validation"):
        print(f"warning: the temperature was fitted on rows of {job.config.evaluation.split}")
    print(f"calibration: applied once to the averaged probabilities, {found.line()}")
    return found


def _identity(opened: Opened, comparisons: Comparisons, calibration: Calibration | None) -> Identity:
    """What the rows are called: a temperature belongs to its weights, so only whether there is one is shared."""
    job = opened.job
    own: dict[str, Any] = {}
    if calibration is not None:
        own["calibration"] = [calibration.temperature, calibration.calibration.examples_hash]
    if not comparisons.labelled:
        own["examples"] = comparisons.contents.examples_hash  # no metric says what they were
    shared = {"calibrated": calibration is not None}
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
            f"{results / 'predictions' / name}.parquet: left by an interrupted run on other data; delete it and run "
            "the same command again"
        )


def _figures(metrics: Mapping[str, float]) -> str:
    """`log_loss 1.0312  accuracy 44.1  brier 0.6204  ece 3.2`."""
    percent = ("accuracy", "ece")
    return "  ".join(
        f"{name} {100 * value:.1f}" if name in percent else f"{name} {value:.4f}" for name, value in metrics.items()
    )
