"""What every kind of place offers that holds a store's objects, and the way to one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

LOCK_NAME = ".lock"  # keys that begin so are locks, not data
PARTIAL_SUFFIX = ".partial"  # keys that end so are unfinished writes


class ObjectStore(Protocol):
    """Get, put, list and delete objects by key (`a/b/c`) below one URL, and the locks of those who write there.

    Objects are written whole and never changed. Every method raises `StoreError` if the place cannot be
    reached or refuses, except as said below.

    Attributes:
        url: as given, without a slash at its end.
    """

    url: str

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """

    def get_each(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """The bytes of several objects in the order of their keys; None for one that does not exist."""

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""

    def put(self, key: str, data: bytes) -> None:
        """Write the object whole; after a crash it is either there or not.

        Raises:
            OSError: the disk refuses.
            StoreError: this process lost its lock.
        """

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Keys of all objects below `prefix`, sorted, with their bytes; unfinished writes are left out."""

    def remove_partials(self, older_than: float = 0.0) -> int:
        """Remove what killed writers left, if last written `older_than` seconds ago; returns how many files."""

    def require_writable(self) -> None:
        """Raise `StoreError` if it is plain already that nothing can be written; creates nothing."""

    def builder_lock(self, worker: int | None = None, workers: int | None = None) -> AbstractContextManager[None]:
        """Hold the right to write for as long as the context lasts.

        An undeclared builder excludes all others; a worker excludes any other that claims to be the same one.

        Args:
            worker: index of this worker; None for an undeclared builder.
            workers: how many there are.

        Raises:
            StoreError: another process holds a lock that excludes this one, or nothing can be written there.
        """

    def base_lock(self) -> AbstractContextManager[None]:
        """Wait for the right to create the base, then hold it for as long as the context lasts.

        The base holds a table learned from a pilot, which on an accelerator need not come out the same twice:
        two workers that each made one would mix their objects.
        """
