"""What a run says of itself: `training.json`, rows of `training_log` and `runs`."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs import Config, ConfigError, Decides, config_to_dict, keys_deciding
from logitbank.experiment import TRAINING_RECORD, TrainingRecord, condition_of, flatten
from logitbank.storage import TeacherStore
from logitbank.storage.results import names_of, withdraw_rows, write_rows

PACKAGES = ("logitbank", "torch", "transformers", "peft", "accelerate", "numpy", "zarr")


@dataclass(frozen=True)
class Run:
    """What to train, from which store, and where everything goes.

    Attributes:
        config: the whole configuration.
        store_url: the teacher store.
        view: teacher view, or None for cross-entropy alone: no teacher array is then read.
        output: directory of the checkpoints; an unfinished run of the same settings in it is resumed.
        results: directory of the result rows.
        held_out_fold: the fold of a label store that is left out; None leaves none out.
        rows: which rows of a label store it learns from, `train`, `external` or `all`; None for a teacher store.
    """

    config: Config
    store_url: str
    view: str | None
    output: Path
    results: Path
    held_out_fold: int | None = None
    rows: str | None = None

    def of_steps(self, examples: int) -> Run:
        """The run whose `training.max_steps` says how many steps it has, where `training.epochs` decides them."""
        training = self.config.training
        training = dataclasses.replace(training, max_steps=training.steps_over(examples))
        return dataclasses.replace(self, config=dataclasses.replace(self.config, training=training))


def describe_run(run: Run, store: TeacherStore, template: str) -> TrainingRecord:
    """The record of a run that is about to start on a teacher store.

    Args:
        run: what to train.
        store: the opened store.
        template: hash of the student's chat template.
    """
    info, with_teacher = store.info, run.view is not None
    return new_record(
        run,
        store_fingerprint=info.fingerprint,
        view_fingerprint=store.view_attributes(run.view)["fingerprint"] if run.view is not None else None,
        template=template,
        training_set=info.identity.get("examples", {}).get("hash"),
        taught_by=info.teacher_model,
        top_k=info.top_k if with_teacher else None,
    )


def new_record(run: Run, *, taught_by: str | None, **of_store: Any) -> TrainingRecord:
    """The record of a run that is about to start, under a name of its own.

    Args:
        run: what to train.
        taught_by: hub id or path of the store's teacher; None for the base model itself.
        of_store: what the store says of itself, as fields of the record.
    """
    return TrainingRecord(
        run=f"{_file_name(run.output.resolve().name)}-{uuid.uuid4().hex[:8]}",
        condition=condition_of(run.view, teacher=taught_by, model=run.config.model.name),
        model=run.config.model.name,
        view=run.view,
        seed=run.config.seed,
        config=config_to_dict(run.config),
        store=run.store_url,
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        teacher=taught_by if run.view is not None else None,
        held_out_fold=run.held_out_fold,
        rows=run.rows,
        **of_store,
    )


def read_record(checkpoint: Path) -> TrainingRecord:
    """The record beside a checkpoint's weights.

    Raises:
        ConfigError: there is none, so its run is unknown.
    """
    record = TrainingRecord.read(checkpoint)
    if record is None:
        raise ConfigError(f"--output: {checkpoint} has no {TRAINING_RECORD}; choose another --output")
    return record


def refuse_another_run(earlier: TrainingRecord, run: Run, checkpoint: Path, now: TrainingRecord | None = None) -> None:
    """Refuse to resume a run of other settings, or to take its student for the result.

    Args:
        earlier: the record of the run in `--output`.
        run: what is asked for.
        checkpoint: where the record is.
        now: the record of what is asked for, where the store was opened.

    Raises:
        ConfigError: the first difference that decides the student.
    """
    for option, before, after in (
        ("--view", earlier.view, run.view),
        ("--held-out-fold", earlier.held_out_fold, run.held_out_fold),
        ("--rows", earlier.rows, run.rows),
    ):
        if before != after:
            raise _another(option, checkpoint, *("none" if value is None else value for value in (before, after)))
    if now is not None:
        for name in ("store_fingerprint", "view_fingerprint", "scorers"):
            before, after = getattr(earlier, name), getattr(now, name)
            if before != after:
                raise _another("--store", checkpoint, f"{name} {before}", f"{name} {after}")
    defaults, epochs = flatten(config_to_dict(Config())), run.config.training.epochs
    configs = [flatten(earlier.config), flatten(config_to_dict(run.config))]
    for key in keys_deciding(Decides.STUDENT, comparisons=run.config.is_preference):
        # a mapping of tasks is a key for each of them
        for name in sorted(n for n in configs[0].keys() | configs[1].keys() if n == key or n.startswith(f"{key}.")):
            before, after = (config.get(name, defaults.get(name)) for config in configs)
            if name == "training.max_steps" and epochs is not None and now is None:
                continue  # epochs decide the steps, and the store, which was not opened, how many they are
            if before != after:
                raise _another(name, checkpoint, before, after)


def _file_name(name: str) -> str:
    """A directory's name as result files may bear it: what is not a plain letter, digit or mark becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._=@+-]+", "-", name).lstrip("-.=@+") or "run"


def publish_log(run: Run, record: TrainingRecord, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the log rows up to `step` that no earlier call wrote; call it on the main process."""
    identity = {name: getattr(record, name) for name in ("run", "model", "condition", "view", "seed")}
    if rows:
        write_rows(run.results, "training_log", [{**identity, **row} for row in rows], f"{record.run}.step-{step:07d}")


def withdraw_later_rows(run: Run, record: TrainingRecord, step: int) -> None:
    """Withdraw this run's own rows of steps that a resume is about to repeat."""
    for name in names_of(run.results, "training_log", f"{record.run}.step-"):
        if int(name.rpartition("-")[2]) > step:
            withdraw_rows(run.results, "training_log", name)
    withdraw_rows(run.results, "runs", record.run)


def publish_run(run: Run, record: TrainingRecord) -> None:
    """Write the run's row of `runs` from its final record; doing it twice changes nothing."""
    assert record.finished_at is not None
    config = json.dumps(record.config, sort_keys=True)
    # comparisons have an α, and no λ
    distillation = record.config["distillation"] if record.view is not None and record.rows is None else {}
    same = ["run", "model", "condition", "step", "seed", "view", "seconds", "store_fingerprint", "view_fingerprint"]
    same += ["teacher", "top_k", "training_set", "template", "held_out_fold"]
    row = {
        **{name: getattr(record, name) for name in same},
        "kind": "training",
        "checkpoint": str(run.output / "final"),
        "lambda_distill": distillation.get("lambda_distill"),
        "strategy": distillation.get("strategy"),
        "training_run": record.run,
        "max_steps": record.config["training"]["max_steps"],
        "config": config,
        "config_hash": hashlib.sha256(config.encode()).hexdigest(),
        "versions": json.dumps(record.versions, sort_keys=True),
        "created_at": datetime.datetime.fromisoformat(record.finished_at),
    }
    write_rows(run.results, "runs", [row], record.run)


def _another(what: str, checkpoint: Path, before: object, after: object) -> ConfigError:
    return ConfigError(
        f"{what}: {checkpoint} was trained with {before}, got {after}; use the same, or choose another --output"
    )
