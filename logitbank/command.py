"""What every command shares: its parser, logging, and how user errors end a run."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from logitbank.errors import ConfigError, LogitbankError

PLACE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # of a file system, not of a bug
NOISY = ("httpx", "datasets", "urllib3", "accelerate", "fsspec")  # loggers of libraries


class CommandParser(argparse.ArgumentParser):
    """Arguments of a command: what is wrong with them is one line, and an option is its whole name or none."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message}; {self.prog} --help lists all options\n")


def make_directory(option: str, path: Path) -> None:
    """Create the directory that an option names, where it is missing.

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
        raise ConfigError(f"{option}: nothing can be written into {path}; choose another, or change its permissions")


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler or launcher wants this process to end; cleans up like Ctrl-C, exits with 143."""


def run_command(body: Callable[[], None], *, resumes: bool = False) -> None:
    """Run a command's body; a user error, or a disk that refuses, is one line on standard error and exit code 2.

    Ctrl-C and SIGTERM unwind the body as KeyboardInterrupt and end with one line and exit code 130 or 143. The line
    is the exception's message where the body raised one that says what was kept.

    Args:
        body: what to do.
        resumes: whether the same command, run again, goes on with what is missing.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
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
            _end(f"error: {place}: {error.strerror}; what is finished is kept", 2)
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
