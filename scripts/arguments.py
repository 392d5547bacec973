"""What the commands of whole studies share: which models, how large, where to."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitbank.command import CommandParser, positive
from logitbank.configs.arguments import add_overrides, add_values, overrides_of
from logitbank.errors import ConfigError


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Attributes:
        train: training examples a task, at most.
        steps: optimizer steps of a student.
        samples: evaluated examples a cell, at most.
    """

    train: int
    steps: int
    samples: int

    @property
    def save_steps(self) -> int:
        """A fifth of the run: 200 of 1,000 steps in the published setting."""
        return max(1, self.steps // 5)

    def overrides(self) -> list[str]:
        """As `key=value`; warm-up and checkpoints keep their share of the run."""
        return [
            f"data.max_train_per_task={self.train}",
            f"training.max_steps={self.steps}",
            f"training.warmup_steps={self.steps // 20}",
            f"training.save_steps={self.save_steps}",
            f"evaluation.max_samples={self.samples}",
        ]


@dataclass(frozen=True)
class Model:
    """One model of a study.

    Attributes:
        name: of its directory, and in headings.
        files: its configurations.
        overrides: what else chooses it.
    """

    name: str
    files: Sequence[str]
    overrides: Sequence[str] = ()


def add_output(parser: CommandParser) -> None:
    """Add `--output DIR`."""
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="directory for everything the command writes"
    )


def add_size(parser: CommandParser, default: Size) -> None:
    """Add `--train`, `--steps` and `--samples`."""
    for name, value, what in (
        ("--train", default.train, "training examples a task, at most"),
        ("--steps", default.steps, "optimizer steps of each student"),
        ("--samples", default.samples, "evaluated examples of each task and language, at most"),
    ):
        parser.add_argument(name, type=positive(int), default=value, metavar="N", help=f"{what} (default: {value})")


def add_processes(parser: CommandParser) -> None:
    """Add `--processes N`."""
    parser.add_argument(
        "--processes",
        type=positive(int),
        metavar="N",
        help="run teacher and students as N processes of accelerate launch, one GPU each (default: a single process)",
    )


def add_models(parser: CommandParser) -> None:
    """Add `--config` and `--model`, each value a model of its own, and the overrides."""
    add_values(
        parser,
        "--config",
        metavar="FILE",
        help="models to run, each as a YAML file or the name of a shipped configuration",
    )
    add_values(
        parser,
        "--model",
        metavar="MODEL",
        help="models to run, each as a path or hub id, with the default configuration",
    )
    add_overrides(parser)


def size_of(arguments: argparse.Namespace) -> Size:
    """What `add_size` asked for."""
    return Size(arguments.train, arguments.steps, arguments.samples)


def models_of(arguments: argparse.Namespace) -> list[Model]:
    """What `add_models` asked for.

    Raises:
        ConfigError: no model, or two that would share a directory.
    """
    found = [Model(Path(file).stem if file.endswith((".yaml", ".yml")) else file, [file]) for file in arguments.config]
    found += [Model(Path(model).name, [], [f"model.name={model}"]) for model in arguments.model]
    found = [Model(Path(model.name).name, model.files, model.overrides) for model in found]
    if not found:
        raise ConfigError("--config or --model: expected a model, got none")
    twice = [name for name, count in Counter(model.name for model in found).items() if count > 1]
    if twice:
        raise ConfigError(f"--config, --model: expected models with different names, got {twice[0]} twice")
    return found


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """Size, then the overrides of the command line."""
    return [*size_of(arguments).overrides(), *overrides_of(arguments)]
