"""Engines that load nothing, for actors: each item is a program of a few words."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.cluster import Item
from logitbank.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """What engines are made with.

    Attributes:
        folder: where they leave traces.
        todo: what the first says there is to do.
        refuses: message of a factory that refuses the actors of the numbers in `refused`, or all.
        bug: whether it raises what nobody expects.
    """

    folder: Path
    todo: tuple[Item, ...] = ()
    refuses: str | None = None
    refused: tuple[int, ...] = ()
    bug: bool = False


class Scribe:
    """Does what items say: `("sleep", s)`, `("die", times)`, `("raise", message)`, `("say", text)` …"""

    def __init__(self, settings: Settings, number: int) -> None:
        self._settings, self._number = settings, number
        (settings.folder / f"opened-{number}").touch()

    def todo(self) -> Sequence[Item]:
        return self._settings.todo

    def do(self, work: Any, advance: Callable[[float], object]) -> Any:
        what, value = work
        if what == "sleep":
            for _ in range(int(value / 0.05)):
                time.sleep(0.05)
                advance(0.05)
        elif what == "die":
            trace = self._settings.folder / "deaths"
            with trace.open("a") as file:
                file.write("x")
            if len(trace.read_text()) <= value:
                os.kill(os.getpid(), signal.SIGKILL)
        elif what == "raise":
            raise ConfigError(value)
        elif what == "bug":
            raise ZeroDivisionError(value)
        elif what == "say":
            print(value)
            logging.getLogger("logitbank").info("logged %s", value)
        elif what == "say and be heard":
            print(value)
            while sys.stdout._lines:  # type: ignore[attr-defined]  # until a look has taken the line
                time.sleep(0.005)
        elif what == "await":
            while not (self._settings.folder / value).exists():
                time.sleep(0.02)
        elif what == "group":
            from ray.util import get_current_placement_group

            group = get_current_placement_group()
            return None if group is None else group.bundle_specs
        return self._number, os.getpid()

    def close(self) -> None:
        (self._settings.folder / f"closed-{self._number}").touch()


def make(settings: Settings, number: int) -> Scribe:
    if settings.bug:
        raise ZeroDivisionError("no such number")
    if settings.refuses is not None and (not settings.refused or number in settings.refused):
        (settings.folder / f"refused-{number}").touch()
        raise ConfigError(settings.refuses)
    return Scribe(settings, number)
