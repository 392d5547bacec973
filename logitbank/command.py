"""What every command shares: its parser, logging, and how user errors end a run."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from logitbank.errors import ConfigError, LogitbankError

PLACE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # of a file system, not of a bug


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


def run_command(body: Callable[[], None]) -> None:
    """Run a command's body; a user error, or a disk that refuses, is one line on standard error and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # The store's codecs are numcodecs' on purpose; docs/store-format.md says which reader needs what.
    warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
    for noisy in ("httpx", "datasets", "urllib3", "accelerate", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        body()
    except LogitbankError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            sys.exit(1)
        if error.errno not in PLACE_ERRORS:
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}; what is finished is kept", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        sys.exit(130)
