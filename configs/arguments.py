"""`--config FILE…` and `key=value…`: how every command is told its configuration."""

from __future__ import annotations

import argparse

from logitbank.configs.loader import load_config
from logitbank.configs.schema import Config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config FILE…` and the trailing `key=value…` overrides."""
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="FILE",
        help="YAML files or names of shipped ones, merged left to right; key=value may follow",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, merged last")


def load(arguments: argparse.Namespace) -> Config:
    """The configuration that the arguments describe; `key=value` after `--config FILE` is taken too."""
    files = [item for item in arguments.config if "=" not in item]
    overrides = [item for item in arguments.config if "=" in item] + list(arguments.overrides)
    return load_config(files, overrides)
