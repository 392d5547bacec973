"""What a run says of itself: `training.json`, rows of `training_log` and `runs`."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs import Config, ConfigError, config_to_dict
from logitbank.storage import TeacherStore
from logitbank.storage.results.rows import write_rows

logger = logging.getLogger(__name__)

CONDITION_OF_VIEW = {None: "finetuned", "fewshot": "distilled", "zeroshot": "control"}
PACKAGES = ("logitbank", "torch", "transformers", "peft", "accelerate", "numpy", "zarr")
# keys that change neither weights nor their order of updates: they may differ on --resume
FREE_KEYS = (
    "evaluation.",
    "teacher.",
    "languages",
    "data.mirror",
    "training.save_steps",
    "training.logging_steps",
    "training.num_workers",
    "training.micro_batch_size",
    "training.gradient_checkpointing",
    "training.loss_chunk_tokens",
)


@dataclass(frozen=True)
class Run:
    """What to train, from which store, and where everything goes.

    Attributes:
        config: the whole configuration.
        store_url: the teacher store.
        view: teacher view, or None for cross-entropy alone: no teacher array is then read.
        output: directory of the checkpoints.
        results: directory of the result rows.
        resume: go on from the newest whole checkpoint in `output`.
    """

    config: Config
    store_url: str
    view: str | None
    output: Path
    results: Path
    resume: bool = False


def describe_request(run: Run) -> dict[str, Any]:
    """What `training.json` has of the command alone, without looking at the store."""
    return {"view": run.view, "seed": run.config.seed, "config": config_to_dict(run.config)}


def describe_run(run: Run, store: TeacherStore, resume_from: Path | None) -> dict[str, Any]:
    """Content of `training.json`, without the step.

    Raises:
        ConfigError: the checkpoint to resume from is of another run than the one asked for.
    """
    about = {
        "run": f"{run.output.resolve().name}-{uuid.uuid4().hex[:8]}",
        "condition": CONDITION_OF_VIEW.get(run.view, run.view),
        "model": run.config.model.name,
        **describe_request(run),
        "store": run.store_url,
        "store_fingerprint": store.info.fingerprint,
        "view_fingerprint": store.view_attributes(run.view)["fingerprint"] if run.view is not None else None,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if resume_from is not None:
        earlier = json.loads((resume_from / "training.json").read_text(encoding="utf-8"))
        refuse_another_run(earlier, about, resume_from)
        about["run"] = earlier["run"]
    return about


def publish_log(run: Run, about: Mapping[str, Any], step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the log rows up to `step` that no earlier call wrote; call it on the main process."""
    identity = {name: about[name] for name in ("run", "model", "condition", "view", "seed")}
    if rows:
        name = f"{about['run']}.step-{step:07d}"
        write_rows(run.results, "training_log", [{**identity, **row} for row in rows], name)


def withdraw_later_rows(run: Run, about: Mapping[str, Any], step: int) -> None:
    """Delete this run's own rows of steps that a resume is about to do again."""
    for path in (run.results / "training_log").glob(f"{about['run']}.step-*.parquet"):
        if int(path.stem.rpartition("-")[2]) > step:
            path.unlink()
    (run.results / "runs" / f"{about['run']}.parquet").unlink(missing_ok=True)


def publish_run(run: Run, about: Mapping[str, Any]) -> None:
    """Write the run's row of `runs` from its final `training.json`; doing it twice changes nothing."""
    config = json.dumps(about["config"], sort_keys=True)
    distillation = about["config"]["distillation"] if about["view"] is not None else {}
    row = {
        **{name: about[name] for name in ("run", "model", "condition", "step", "seed", "view", "seconds")},
        "kind": "training",
        "checkpoint": str(run.output / "final"),
        "lambda_distill": distillation.get("lambda_distill"),
        "strategy": distillation.get("strategy"),
        "training_run": about["run"],
        "store_fingerprint": about["store_fingerprint"],
        "config": config,
        "config_hash": hashlib.sha256(config.encode()).hexdigest(),
        "versions": json.dumps(about["versions"], sort_keys=True),
        "created_at": datetime.datetime.fromisoformat(about["finished_at"]),
    }
    write_rows(run.results, "runs", [row], about["run"])


def refuse_another_run(earlier: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse to go on with a checkpoint, or to take it for the result, of a run with other settings.

    Args:
        earlier: its `training.json`.
        now: the run asked for, as `describe_run` or `describe_request` has it.
        checkpoint: where it lies.

    Raises:
        ConfigError: the first difference.
    """
    for name, option in (("view", "--view"), ("store_fingerprint", "--store"), ("view_fingerprint", "--store")):
        if name in now and earlier[name] != now[name]:
            raise ConfigError(
                f"{option}: {checkpoint} was trained with {name} {earlier[name]}, got {now[name]}; "
                "resume with the same, or choose another --output"
            )
    before, after = _flatten(earlier["config"]), _flatten(now["config"])
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not key.startswith(FREE_KEYS):
            raise ConfigError(
                f"{key}: {checkpoint} was trained with {before.get(key)}, got {after.get(key)}; "
                "resume with the same, or choose another --output"
            )


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat
