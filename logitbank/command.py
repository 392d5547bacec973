"""What every command shares: its parser, logging, and how user errors end a run."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import math
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

from logitbank.errors import ConfigError, LogitbankError

PLACE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # of a file system, not of a bug
NUMBERS = {int: "a whole number", float: "a number"}
# loggers of libraries, and the least that is worth saying; bitsandbytes warns of faster kernels whenever it is imported
NOISY = dict.fromkeys(("httpx", "httpx2", "datasets", "urllib3", "accelerate", "fsspec"), logging.WARNING)
NOISY["bitsandbytes"] = logging.ERROR


class CommandParser(argparse.ArgumentParser):
    """Arguments of a command: what is wrong with them is one line, and an option is its whole name or none."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments; `key=value` may appear anywhere, but in a command with commands of its own."""
        return self.parse_args(argv) if self._subparsers is not None else self.parse_intermixed_args(argv)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message.removeprefix('argument ')}; {self.prog} --help lists all options\n")


@dataclass(frozen=True)
class CommandGroup:
    """Commands under one name, each a module with `make_parser()` and `main(argv)` that is imported when it is called.

    A module that is such a group itself has a `make_tree()` too, and one that other programs run a `perform`.

    Attributes:
        prog: the name.
        description: what they have in common.
        members: name -> (module, what it does).
        version: what `--version` prints; None for a group without.
    """

    prog: str
    description: str
    members: Mapping[str, tuple[str, str]]
    version: str | None = None

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run the command that the first argument names, with all that follow."""
        given = self.make_parser().parse_args(argv)
        importlib.import_module(self.members[given.command][0]).main(given.arguments)

    def perform(self, words: Sequence[str]) -> None:
        """Do what a command does inside another program: what goes wrong is raised, and nothing ends the process.

        Args:
            words: the name of a command whose module has `perform(arguments)`, and its arguments.
        """
        module = importlib.import_module(self.members[words[0]][0])
        module.perform(module.make_parser().read(list(words[1:])))

    def make_parser(self) -> CommandParser:
        """The name of a command, and all that is its own affair."""
        width = max(map(len, self.members))
        listing = "\n".join(f"  {name:{width}}  {purpose}" for name, (_, purpose) in self.members.items())
        parser = CommandParser(
            prog=self.prog,
            description=self.description,
            epilog=f"commands:\n{listing}\n\n{self.prog} COMMAND --help lists the options of a command.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if self.version is not None:
            parser.add_argument("--version", action="version", version=f"{self.prog} {self.version}")
        parser.add_argument("command", choices=self.members, metavar="COMMAND")
        parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="of the command")
        return parser

    def make_tree(self) -> CommandParser:
        """The parsers of all commands under one, for what has to know every option: completion, documentation."""
        parser = CommandParser(prog=self.prog, description=self.description)
        commands = parser.add_subparsers(parser_class=cast(Any, self._member_tree))
        for name, (_, purpose) in self.members.items():
            commands.add_parser(name, help=purpose)
        return parser

    def _member_tree(self, *, prog: str, **options: Any) -> argparse.ArgumentParser:
        module = importlib.import_module(self.members[prog.rpartition(" ")[2]][0])
        tree: argparse.ArgumentParser = getattr(module, "make_tree", module.make_parser)()
        return tree


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """For arguments: reads a number above 0."""

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected {NUMBERS[kind]} above 0, got {text}")
        return value

    return number


def make_directory(option: str, path: Path) -> None:
    """Create the directory that an option names, if it is missing.

    Raises:
        ConfigError: it cannot be created, is a file, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{option}: expected a directory, got the file {path}") from None
    except OSError as error:
        raise ConfigError(f"{option}: cannot create the directory {path}: {error.strerror}; choose another") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: {path} is not writable; choose another, or change its permissions")


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler or launcher asks this process to end; cleans up like Ctrl-C, exits with 143."""


def run_command(body: Callable[[], None], *, resumes: bool = False) -> None:
    """Run a command's body; a user error, or a disk that refuses, is one line on standard error and exit code 2.

    Ctrl-C and SIGTERM unwind the body as KeyboardInterrupt and end with one line and exit code 130 or 143. The line
    is the exception's message where the body raised one that says what was kept.

    Args:
        body: what to do.
        resumes: whether the same command, run again, continues with what is missing.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy, level in NOISY.items():
        logging.getLogger(noisy).setLevel(level)
    with warnings.catch_warnings(), _sigterm_unwinds():
        if not sys.warnoptions:  # libraries warn their callers, which we are; python -W shows them
            warnings.simplefilter("ignore")
        try:
            body()
        except LogitbankError as error:
            _end(f"error: {error}", 2)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            if error.errno not in PLACE_ERRORS:
                raise
            place = shlex.quote(str(error.filename)) if error.filename else "output"
            _end(f"error: {place}: {error.strerror}; finished work is kept", 2)
        except KeyboardInterrupt as stop:
            said = "Terminated" if isinstance(stop, Terminated) else "Interrupted"
            plain = f"{said}; run the same command to resume" if resumes else said
            _end(str(stop) or plain, 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


def _end(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM raises `Terminated`, so that locks, leases and temporary files go; only a main thread may ask for it."""

    def unwind(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
