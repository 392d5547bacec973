"""A student trained from a bucket is the student trained from a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from logitbank.storage.objects import open_objects
from logitbank.student_train.train_command import main

SMALL = [
    "tasks=[nli,pos]",
    "training.use_lora=false",
    "training.precision=fp32",
    "training.max_steps=3",
    "training.global_batch_size=4",
    "training.micro_batch_size=2",
]


@pytest.fixture
def remote(bucket: Callable[[], str], small_store: SimpleNamespace) -> str:
    """The small store's objects, copied to S3."""
    source, target = open_objects(small_store.url), open_objects(bucket())
    for key in source.sizes():
        target.put(key, source.get(key))
    return target.url


def test_a_student_from_a_bucket(remote: str, small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path) -> None:
    """Two threads read from S3; the weights are those of a run from disk, without threads."""
    for name, url, workers in (("remote", remote, 2), ("local", small_store.url, 0)):
        options = ["--store", url, "--view", "fewshot", "--output", str(tmp_path / name)]
        main([*options, f"model.name={tiny_model}", *SMALL, f"training.num_workers={workers}"])
    weights, same = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("remote", "local"))
    assert all((weights[name] == same[name]).all() for name in weights.keys() | same.keys())
