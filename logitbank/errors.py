"""What can go wrong that is not a bug: one root class, and a member for each kind of mistake or mishap.

Every member also is the built-in exception that a caller of that kind of function expects. Commands print
the message on one line and exit with code 2; a message says which field, what was expected, what was
found and what to do.
"""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number and its noun, for messages: `1 shard`, `2 shards`, `1,000 shards`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class LogitbankError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(LogitbankError, ValueError):
    """A configuration key or command-line option that the user must fix."""


class TaskError(LogitbankError, ValueError):
    """A task, language, split or row that does not exist or does not fit; the message lists what does."""


class StoreError(LogitbankError, ValueError):
    """A teacher store or result directory that cannot be used as requested; the message gives the part and what to
    do.
    """


class StoreBusyError(StoreError):
    """A store that another process writes."""


class CorruptStoreError(StoreError):
    """Bytes that do not match their checksum or manifest; names array, shard and examples."""


class IncompleteStoreError(StoreError):
    """A view with shards not written yet."""


class TrainingError(LogitbankError, ArithmeticError):
    """A training run whose numbers left the finite ones."""


class MemoryExhaustedError(LogitbankError, MemoryError):
    """Work that does not fit in memory even in its smallest pieces; names the keys that need less."""


class OutputError(LogitbankError, OSError):
    """A file or directory that cannot be written."""


class ClusterError(LogitbankError, RuntimeError):
    """Work on several machines that cannot start or continue; names actor, node and item."""
