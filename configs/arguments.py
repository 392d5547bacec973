"""`--config FILE…` and `key=value…`: how every command is told its configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from logitbank.configs.loader import OVERRIDE, load_config
from logitbank.configs.schema import Config


class Override(str):
    """A `key=value` that follows the values of an option."""


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config FILE…` and the trailing `key=value…` overrides."""
    add_values(
        parser, "--config", metavar="FILE", help="YAML files or names of shipped configurations, merged left to right"
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the `key=value…` overrides, which may appear anywhere."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of configuration keys, applied last"
    )


def add_values(
    parser: argparse.ArgumentParser,
    option: str,
    *,
    kind: Callable[[str], Any] = str,
    default: Sequence[Any] = (),
    **options: Any,
) -> None:
    """Add an option of one or more values; `key=value` after them is not a value but an override.

    Args:
        parser: of a command with overrides.
        option: `--name`.
        kind: makes a value of a text.
        default: without the option.
        options: of `add_argument`.
    """

    def value(text: str) -> Any:
        return Override(text) if OVERRIDE.match(text) else kind(text)

    value.__name__ = getattr(kind, "__name__", "value")  # "invalid float value"
    parser.add_argument(option, nargs="+", type=value, default=list(default), action=_Values, **options)


class _Values(argparse.Action):
    """Keeps values and overrides apart."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        own = [value for value in values if not isinstance(value, Override)]
        if not own:
            parser.error(f"{option}: expected a value, got the override {values[0]}")
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(() if before is self.default else before), *own])
        behind = [str(value) for value in values if isinstance(value, Override)]
        namespace.behind_options = [*getattr(namespace, "behind_options", []), *behind]


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """All `key=value` of the command line, those after options first."""
    return [*getattr(arguments, "behind_options", []), *arguments.overrides]


def load(arguments: argparse.Namespace, *, any_task: bool = False) -> Config:
    """The configuration that the arguments describe; see `load_config`."""
    return load_config(arguments.config, overrides_of(arguments), any_task=any_task)
