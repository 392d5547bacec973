"""The hash of a model's weights: of all that decides them, read once for as long as the files stay as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import huggingface_hub
import pytest

from logitbank.configs import ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.models import weights
from logitbank.models.weights import weights_hash


@pytest.fixture(autouse=True)
def _remember_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "WORTH_REMEMBERING", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def _hash(folder: Path) -> str:
    return weights_hash(ModelConfig(str(folder)))


def test_a_copy_has_the_same_hash_and_other_weights_have_another(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert _hash(copy) == _hash(model)
    (copy / "tokenizer.json").write_text("another")
    assert _hash(copy) == _hash(model), "what decides prompts has hashes of its own"
    (copy / "config.json").write_text('{"rope_theta": 1}')
    assert _hash(copy) != _hash(model)


def test_weights_overwritten_in_place_are_noticed_whatever_their_date_says(model: Path) -> None:
    file = model / "model.safetensors"
    before, status = _hash(model), file.stat()
    with file.open("r+b") as handle:
        handle.write(bytes(256))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert _hash(model) != before


def test_files_that_stay_as_they_are_are_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _hash(model)
    read: list[Path] = []
    reading = weights._read_hash

    def count(path: Path) -> bytes:
        read.append(path)
        return reading(path)

    monkeypatch.setattr(weights, "_read_hash", count)
    assert _hash(model) == expected
    assert read == []
    (model / "model.safetensors").write_bytes(b"other")
    _hash(model)
    assert [path.name for path in read] == ["model.safetensors"]


@pytest.mark.parametrize("cache", ["damaged", "not writable"])
def test_without_a_cache_the_hash_is_the_same(model: Path, tmp_path: Path, cache: str) -> None:
    expected = _hash(model)
    folder = tmp_path / "cache" / "logitbank" / "weights"
    for file in folder.iterdir():
        file.write_text("{")
    if cache == "not writable":
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        folder.write_text("a file in its place")
    assert _hash(model) == expected


def test_a_directory_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weight files in"):
        _hash(model)


def test_a_downloaded_model_is_found_and_a_half_downloaded_one_is_not_hashed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's client lays models out; tests are offline, so what is missing cannot be fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    snapshot = repository / "snapshots" / ("0" * 40)
    model.rename(snapshot)
    expected = _hash(snapshot)
    (snapshot / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    assert weights_hash(ModelConfig("org/name")) == expected, "safetensors are what is loaded"
    parts = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(parts))
    with pytest.raises(ConfigError, match=r"org/name cannot be downloaded"):
        weights_hash(ModelConfig("org/name"))


def test_a_model_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model.name: nobody/nothing cannot be downloaded: .") as caught:
        weights_hash(ModelConfig("nobody/nothing"))
    assert "\n" not in str(caught.value)
