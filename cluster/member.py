"""What runs in an actor's process: an engine that a factory made, the item it is at, and what it reports in the
meantime.

Failures travel as values. What arrives as an exception of Ray's is therefore the death of a process.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from logitbank.command import NOISY
from logitbank.errors import LogitbankError


@dataclass(frozen=True)
class Item:
    """A piece of work that one engine does whole, and that may be done again.

    Attributes:
        name: for messages.
        cost: in units of progress; the costliest are given out first.
        work: what the engine is told; picklable.
        group: items of one group are quicker one after the other: an engine stays with its own while there are any.
    """

    name: str
    cost: float
    work: Any
    group: str = ""


class Engine(Protocol):
    """What a factory makes, once in each actor."""

    def do(self, work: Any, advance: Callable[[float], object]) -> Any:
        """Do an item and return what the driver needs to know about it, picklable.

        `advance` counts progress in units of cost, and is where the work ends early when it has to.
        """

    def close(self) -> None:
        """Release locks and files."""


class Planner(Engine, Protocol):
    """An engine that knows the items, where the driver does not."""

    def todo(self) -> Sequence[Item]:
        """All that is not done yet."""


@dataclass(frozen=True)
class Factory:
    """How an actor makes its engine.

    Attributes:
        place: `module:function`, called with `settings` and the actor's number, which no other has had.
        settings: picklable.
    """

    place: str
    settings: Any

    def make(self, number: int) -> Engine:
        """The engine of the actor with this number."""
        module, _, name = self.place.partition(":")
        engine: Engine = getattr(importlib.import_module(module), name)(self.settings, number)
        return engine


@dataclass(frozen=True)
class Failure:
    """What went wrong without ending the process.

    Attributes:
        message: one line for a mistake of the user's, otherwise the traceback.
        expected: whether it is a mistake or mishap that the package has a message for.
    """

    message: str
    expected: bool


@dataclass(frozen=True)
class Said:
    """A line that an engine printed, or logged."""

    text: str
    printed: bool


@dataclass(frozen=True)
class Answer:
    """What a call gave: a value or a failure, and the lines that were said since the last answer."""

    value: Any = None
    failure: Failure | None = None
    said: tuple[Said, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where an actor is: node and its address, and process id."""

    node: str
    address: str
    pid: int


class Stopped(KeyboardInterrupt):
    """The driver no longer needs it: the item unwinds as by Ctrl-C."""


class Member:
    """An actor.

    Args:
        directory: of the driver; relative paths mean the same here where there is such a directory.
    """

    def __init__(self, directory: str) -> None:
        if Path(directory).is_dir():
            os.chdir(directory)
        self._engine: Engine | None = None
        self._done = 0.0
        self._stopping = False
        self._lines = _Lines()
        self._lines.collect()

    def place(self) -> Answer:
        """Where this is."""
        import ray

        context = ray.get_runtime_context()
        return Answer(Place(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid()))

    def open(self, factory: Factory, number: int, asked: bool) -> Answer:
        """Make the engine; if it is `asked`, the value is the list of items."""

        def make() -> Any:
            self._engine = factory.make(number)
            return list(cast(Planner, self._engine).todo()) if asked else None

        return self._answer(make)

    def do(self, work: Any) -> Answer:
        """Do an item."""
        assert self._engine is not None
        engine, self._done = self._engine, 0.0
        return self._answer(lambda: engine.do(work, self._advance))

    def status(self) -> Answer:
        """How much of the running item is done; called while it runs."""
        return Answer(self._done, said=self._lines.take())

    def stop(self) -> None:
        """End the running item at its next step; called while it runs."""
        self._stopping = True

    def close(self) -> None:
        """Release what the engine holds."""
        if self._engine is not None:
            self._engine.close()

    def _advance(self, count: float) -> None:
        self._done += count
        if self._stopping:
            raise Stopped

    def _answer(self, call: Callable[[], Any]) -> Answer:
        value, failure = None, None
        try:
            value = call()
        except LogitbankError as error:
            failure = Failure(str(error), expected=True)
        except (Exception, Stopped):
            failure = Failure(traceback.format_exc(), expected=False)
        return Answer(value, failure, self._lines.take())


class _Lines(io.TextIOBase):
    """Collects what is printed and logged in this process."""

    def __init__(self) -> None:
        self._lines: list[Said] = []
        self._begun = ""
        self._one_at_a_time = threading.Lock()

    def collect(self) -> None:
        """From now on."""
        sys.stdout = self
        handler = logging.Handler()
        handler.emit = lambda record: self._add(record.getMessage(), printed=False)  # type: ignore[method-assign]
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        for noisy, level in {**NOISY, "ray": logging.ERROR}.items():
            logging.getLogger(noisy).setLevel(level)
        warnings.simplefilter("ignore")

    def write(self, text: str) -> int:
        """Of `print`: whole lines are kept, the beginning of one waits for its end."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._add(line, printed=True)
        return len(text)

    def take(self) -> tuple[Said, ...]:
        """What was said since this was last asked."""
        with self._one_at_a_time:
            lines, self._lines = self._lines, []
        return tuple(lines)

    def _add(self, text: str, *, printed: bool) -> None:
        with self._one_at_a_time:
            self._lines.append(Said(text, printed))
