"""`export.json`: what an export was made from and how, which also says whether a directory is a finished export."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs.schema import ConfigError
from logitbank.experiment import EXPORT_RECORD, flatten
from logitbank.models.weights import weights_hash
from logitbank.student_train.checkpoints import damage
from logitbank.student_train.export.quantization import Quantization
from logitbank.student_train.export.sources import Source


@dataclass(frozen=True)
class Export:
    """What is exported, how, and where to.

    Attributes:
        sources: one checkpoint, or several of the same base and head, whose mean it is.
        output: directory of the result.
        dtype: number format of the weights that are not quantised.
        quantization: None for a whole model.
        store: fingerprint of the label store that quantising draws rows from; None without one.
    """

    sources: Sequence[Source]
    output: Path
    dtype: str
    quantization: Quantization | None = None
    store: str | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the result: equal exactly where the results are to be equal."""
        base = self.sources[0].base if self.sources[0].is_adapter else None
        quantization = None
        if self.quantization is not None:
            gptq = self.quantization.method == "gptq"
            names = ("method", "fallback", "bits", "group_size", "samples") if gptq else ("method",)
            quantization = {name: getattr(self.quantization, name) for name in names} | {"store": self.store}
        return {
            "weights": [source.weights for source in self.sources],
            "base": None if base is None else weights_hash(base),
            "dtype": self.dtype,
            "quantization": quantization,
        }

    def describe_sources(self) -> dict[str, Any]:
        """Where the weights come from, to read."""
        base = self.sources[0].base if self.sources[0].is_adapter else None
        return {
            "base": None if base is None else {"name": base.name, "revision": base.revision},
            "checkpoints": [
                {
                    "path": str(source.path.resolve()),
                    "kind": "adapter" if source.is_adapter else "model",
                    "weights": source.weights,
                    "training": _describe_training(source),
                }
                for source in self.sources
            ],
        }


def is_finished(export: Export) -> bool:
    """Whether the output already holds this export, complete.

    Raises:
        ConfigError: it holds something else.
    """
    output = export.output
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        before = json.loads((output / EXPORT_RECORD).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--output: {shlex.quote(str(output))} exists but was not written by export-model (it has no "
            f"{EXPORT_RECORD}); choose another"
        ) from None
    now = export.identity()
    if before != now:
        raise ConfigError(
            f"--output: {shlex.quote(str(output))} holds another export ({_difference(before, now)}); choose another"
        )
    return damage(output) is None


def write_record(directory: Path, export: Export, result: Mapping[str, Any]) -> None:
    """Write `export.json`.

    Args:
        directory: of the result.
        export: what was asked for.
        result: what came of it.
    """
    content = {"identity": export.identity(), **export.describe_sources(), **result}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (directory / EXPORT_RECORD).write_text(text, encoding="utf-8")


def _describe_training(source: Source) -> dict[str, Any] | None:
    if source.training is None:
        return None
    names = ("run", "condition", "model", "view", "seed", "step", "store", "store_fingerprint", "held_out_fold")
    record = {field.name: getattr(source.training, field.name) for field in dataclasses.fields(source.training)}
    return {name: record.get(name) for name in names}


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    """The first thing that differs, in words."""
    if not isinstance(before, Mapping):
        return "of another version"
    for name, what in (("weights", "other checkpoints"), ("base", "another base")):
        if before.get(name) != now[name]:
            return f"of {what}"
    flat = [flatten(each) for each in (before, now)]
    for name in sorted(flat[0].keys() | flat[1].keys()):
        one, other = (each.get(name) for each in flat)
        if one != other:
            return f"{name} {one}, got {other}"
    return "of another version"
