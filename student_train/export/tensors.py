"""Weights that are read and written tensor by tensor: means of whole models and of heads."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from logitbank.configs.schema import ConfigError
from logitbank.models.huggingface import DTYPES
from logitbank.models.pair_head import HEAD_WEIGHTS

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


class StoredWeights:
    """The tensors of a whole model's directory, read one at a time."""

    def __init__(self, directory: Path) -> None:
        """Look up which file has which tensor.

        Raises:
            ConfigError: no safetensors files, or some of them are missing.
        """
        self.directory = directory
        names = [WHOLE]
        if (directory / INDEX).is_file():
            index = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(index.values()))
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise ConfigError(
                f"{shlex.quote(str(directory))} has no {missing[0]}; expected whole weights as safetensors"
            )
        self.files: dict[str, list[str]] = {}
        self._file_of: dict[str, str] = {}
        for name in names:
            with self._open(name) as file:
                self.files[name] = list(file.keys())
            self._file_of |= dict.fromkeys(self.files[name], name)

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored."""
        with self._open(self._file_of[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def dtypes(self) -> dict[str, str]:
        """Number format of each tensor, as safetensors calls it: `BF16`, `F32` …"""
        found: dict[str, str] = {}
        for file_name, names in self.files.items():
            with self._open(file_name) as file:
                found |= {name: str(file.get_slice(name).get_dtype()) for name in names}
        return found

    def _open(self, name: str) -> Any:
        try:
            return safe_open(self.directory / name, "pt")
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{self.directory / name}: cannot be read: {' '.join(str(error).split())}") from None


def write_mean(directories: Sequence[Path], target: Path, dtype: str | None = None) -> None:
    """Write the mean of whole models' weights, file by file as the first of them has them; a single one is copied.

    Means are formed in float32, whatever the weights are stored in; float64 ones in float64.

    Args:
        directories: of at least one model.
        target: an existing directory, which gets the first model's configuration too.
        dtype: number format of the result, one of `DTYPES`; default that of the first model, tensor by tensor.

    Raises:
        ConfigError: weights that are not in safetensors format, or other tensors or shapes than the first model's.
    """
    models = [StoredWeights(directory) for directory in directories]
    for model in models[1:]:
        if other := models[0].names() ^ model.names():
            raise ConfigError(
                f"--average: {model.directory} and {models[0].directory} have different layers: {sorted(other)[0]} "
                "is in only one of them"
            )
    for name, tensors in models[0].files.items():
        mean = {tensor: _mean(models, tensor, DTYPES.get(dtype or "")) for tensor in tensors}
        save_file(mean, target / name, metadata={"format": "pt"})
    for path in _descriptions(directories[0]):
        shutil.copyfile(path, target / path.name)
    if dtype is not None:
        set_dtype(target, dtype)


def write_mean_head(directories: Sequence[Path], target: Path) -> None:
    """Write the mean of the heads in directories: `classifier_head.safetensors`, float32.

    Raises:
        ConfigError: heads of other shapes.
    """
    heads = [load_file(directory / HEAD_WEIGHTS) for directory in directories]
    for directory, head in zip(directories, heads, strict=True):
        shapes, first = ({name: tuple(value.shape) for name, value in each.items()} for each in (head, heads[0]))
        if shapes != first:
            raise ConfigError(f"--average: {directory / HEAD_WEIGHTS}: expected the shapes {first}, got {shapes}")
    mean = {name: torch.stack([head[name].double() for head in heads]).mean(dim=0).float() for name in heads[0]}
    save_file(mean, target / HEAD_WEIGHTS)


def restore_dtypes(directory: Path, original: Path, scales: torch.dtype | None = None) -> None:
    """Store what quantisation left as it was in the number format that it had.

    A quantised model is opened in float32 where that is faster, so its embeddings and norms would be stored in it.

    Args:
        directory: of the quantised model, rewritten in place.
        original: of the model that it was made from.
        scales: number format of what quantisation added; default as it is.
    """
    before, after = StoredWeights(original), StoredWeights(directory)
    formats, now = before.dtypes(), after.dtypes()
    for file_name, names in after.files.items():
        tensors = {name: after.read(name) for name in names}
        for name in tensors.keys() & formats.keys():
            if tensors[name].is_floating_point() and now[name] != formats[name]:
                tensors[name] = tensors[name].to(before.read(name).dtype)
        partial = directory / f"{file_name}.partial"  # the tensors may be in the file itself
        for name in tensors.keys() - formats.keys():
            if scales is not None and tensors[name].is_floating_point():
                tensors[name] = tensors[name].to(scales)
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(directory / file_name)
    stored = json.loads((original / "config.json").read_text(encoding="utf-8")).get("dtype")
    if stored is not None:
        set_dtype(directory, stored)


def set_dtype(directory: Path, dtype: str) -> None:
    """Say in a model's configuration which number format its weights are stored in."""
    path = directory / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["dtype"] = dtype
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _mean(models: Sequence[StoredWeights], name: str, dtype: torch.dtype | None) -> torch.Tensor:
    first = models[0].read(name)
    if not first.is_floating_point():
        if any(not torch.equal(model.read(name), first) for model in models[1:]):
            raise ConfigError(f"--average: {name} holds integers that differ, so they cannot be averaged")
        return first
    total = first if first.dtype == torch.float64 else first.float()
    for model in models[1:]:
        other = model.read(name)
        if other.shape != first.shape:
            raise ConfigError(
                f"--average: {name}: expected the shape {tuple(first.shape)}, got {tuple(other.shape)} in "
                f"{model.directory}"
            )
        total = total + other
    return (total / len(models)).to(dtype or first.dtype)


def _descriptions(directory: Path) -> Iterator[Path]:
    """What transformers reads beside the weights."""
    for path in sorted(directory.iterdir()):
        if path.name in ("config.json", "generation_config.json", INDEX) or path.suffix == ".py":
            yield path
