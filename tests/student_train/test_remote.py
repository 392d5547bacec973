"""A student trained from a bucket or a web server is the student trained from a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import load_file

from logitbank.storage.objects import open_objects, pack_objects
from logitbank.student_train.train_command import main
from tests.servers import FileServer, serving

SMALL = [
    "tasks=[nli,pos]",
    "training.use_lora=false",
    "training.precision=fp32",
    "training.max_steps=3",
    "training.global_batch_size=4",
    "training.micro_batch_size=2",
]


@pytest.fixture
def local(small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """The weights of a student trained from disk, without threads."""
    return student(small_store.url, tiny_model, tmp_path / "local", threads=0)


def student(url: str, model: Path, output: Path, *, threads: int) -> dict[str, Any]:
    """The weights of a student trained from the store at this URL."""
    options = ["--store", url, "--view", "fewshot", "--output", str(output)]
    main([*options, f"model.name={model}", *SMALL, f"training.num_workers={threads}"])
    return load_file(output / "final" / "model.safetensors")


def assert_same(weights: dict[str, Any], others: dict[str, Any]) -> None:
    assert all((weights[name] == others[name]).all() for name in weights.keys() | others.keys())


def test_a_student_from_a_bucket(
    bucket: Callable[[], str], small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path, local: dict[str, Any]
) -> None:
    source, target = open_objects(small_store.url), open_objects(bucket())
    for key in source.sizes():
        target.put(key, source.get(key))
    assert_same(student(target.url, tiny_model, tmp_path / "remote", threads=2), local)


def test_a_student_from_a_web_server_that_fails_now_and_then(
    small_store: SimpleNamespace,
    tiny_model: Path,
    tmp_path: Path,
    local: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("logitbank.storage.objects.web.FIRST_PAUSE", 0.0)
    pack_objects(open_objects(small_store.url), tmp_path / "packed")
    site = FileServer(tmp_path / "packed")
    with serving(site) as url:
        site.statuses = [200, 503, 206, 503, 429]
        assert_same(student(url, tiny_model, tmp_path / "remote", threads=2), local)
    assert not site.statuses
