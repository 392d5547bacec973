"""Checkpoints: what PEFT and transformers load, plus what `--resume` needs.

`OUTPUT/checkpoint-<step>/`, `OUTPUT/final/` and `OUTPUT/best/` hold the adapter or the model, the tokenizer and
`training.json`; checkpoints also hold `state/`: optimizer, random states and unpublished log rows. A
checkpoint is written under a temporary name and renamed, `files.json` (every file's size) last of all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError

from logitbank.errors import OutputError
from logitbank.experiment import TRAINING_RECORD, TrainingRecord
from logitbank.student_train.sharding import load_optimizer_state, whole_optimizer_state, whole_weights

logger = logging.getLogger(__name__)

FINAL = "final"
BEST = "best"  # of all evaluations, where a run makes any
FILES = "files.json"
STATE = "state"
TRAINER = "trainer.pt"
SHARDED = "sharded"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(
    accelerator: Accelerator,
    student: torch.nn.Module,
    optimizer: Any,
    tokenizer: Any,
    target: Path,
    record: TrainingRecord,
    state: Mapping[str, Any] | None,
    save_model: Callable[[Mapping[str, torch.Tensor], Path], None],
) -> None:
    """Write one checkpoint; every rank calls this.

    Args:
        accelerator: of the run.
        student: the prepared student.
        optimizer: the prepared optimizer; saved where `state` is.
        tokenizer: saved beside the weights.
        target: `OUTPUT/checkpoint-<step>`, `OUTPUT/final` or `OUTPUT/best`.
        record: content of `training.json`.
        state: tensors and plain values that `load_state` gives back, or None if nothing resumes.
        save_model: writes the student's weights, given by name, into a directory.

    Raises:
        OutputError: a disk that is full or refuses; what was half-written is removed.
    """
    weights = whole_weights(accelerator, student)
    optimizer_state: dict[str, Any] = {}
    if state is not None and accelerator.distributed_type != DistributedType.DEEPSPEED:
        optimizer_state = whole_optimizer_state(student, optimizer)
    partial = target.parent / f".{target.name}.partial"
    with refusals(target, partial):
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / STATE).mkdir(parents=True)
        accelerator.wait_for_everyone()
        if state is not None:
            _save_tensors(_random_state(), partial / STATE / f"random-{accelerator.process_index}.pt")
            if accelerator.distributed_type == DistributedType.DEEPSPEED:
                accelerator.save_state(str(partial / STATE / SHARDED))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_model(weights, partial)
            tokenizer.save_pretrained(partial)
            _write_json(partial / TRAINING_RECORD, record.to_json())
            if state is not None:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
                everything = {**state, "optimizer": optimizer_state, "scaler": scaler}
                _save_tensors(everything, partial / STATE / TRAINER)
            else:
                (partial / STATE).rmdir()
            seal(partial)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            _sync(target.parent)
    accelerator.wait_for_everyone()


def inside(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the part of a student that has this name, by their names in that part."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def save_weights(model: Any, weights: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Write a transformers model, or its adapter, with these weights in place of its own."""
    if hasattr(model, "peft_config"):
        targets = set(next(iter(model.peft_config.values())).target_modules)
        # "auto" would ask the hub whether the base model's vocabulary changed
        saves_embeddings = bool(targets & {"embed_tokens", "lm_head"})
        model.save_pretrained(directory, state_dict=dict(weights), save_embedding_layers=saves_embeddings)
    else:
        model.save_pretrained(directory, state_dict=dict(weights))


def latest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint, damaged ones skipped with a warning; None if there is none."""
    for path in reversed(list_checkpoints(output)):
        if problem := damage(path):
            logger.warning("warning: %s is damaged (%s) and skipped", path, problem)
        else:
            return path
    return None


def list_checkpoints(output: Path) -> list[Path]:
    """`OUTPUT/checkpoint-*`, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    match = CHECKPOINT_NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sizes = json.loads((path / FILES).read_text())
    except (OSError, ValueError):
        return f"no readable {FILES}"
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def load_state(accelerator: Accelerator, student: torch.nn.Module, optimizer: Any, path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `state`; restores the optimizer and this rank's random states.

    DeepSpeed restores its weights and optimizer from its own files.
    """
    process_index = accelerator.process_index
    state: dict[str, Any] = torch.load(path / STATE / TRAINER, map_location="cpu", weights_only=True, mmap=True)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.load_state(str(path / STATE / SHARDED))
    else:
        load_optimizer_state(student, optimizer, state["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    random_file = path / STATE / f"random-{process_index}.pt"
    if random_file.exists():
        _restore_random_state(torch.load(random_file, map_location="cpu", weights_only=True))
    else:
        logger.warning(
            "warning: %s was written by fewer processes; rank %d starts new dropout masks", path, process_index
        )
    return state


def remove_old_checkpoints(output: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints; None keeps all."""
    if keep is not None:
        for path in list_checkpoints(output)[:-keep]:
            shutil.rmtree(path)


def remove_partial(output: Path) -> None:
    """Delete what killed runs left under temporary names."""
    for path in output.glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def refusals(target: Path, partial: Path) -> Iterator[None]:
    """Turn what a full disk makes of each library's writing into one error; make room again."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"--output: cannot write {target}: {refusal}; make room and run the same command to resume"
        ) from error


def _refusal(error: BaseException) -> str | None:
    """What the operating system said, or None if this is another mistake."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.strerror
        cause = cause.__context__
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return os.strerror(int(found[1]))
    if "inline_container.cc" in str(error):  # torch.save, which looks at sizes alone
        return "a file ended before all of it was written"
    return None


def _save_tensors(content: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)


def seal(directory: Path) -> None:
    """Make every file durable, then list them all with their sizes."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    _write_json(directory / FILES, {str(path.relative_to(directory)): path.stat().st_size for path in files})
    _sync(directory / FILES)
    _sync(directory)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_state() -> dict[str, Any]:
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    inner = numpy_state["state"]
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": inner["key"].tolist(), "pos": int(inner["pos"])}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    key = np.asarray(inner["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {"key": key, "pos": inner["pos"]}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
