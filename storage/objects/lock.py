"""Who may write a store: one undeclared builder, or N workers that declared themselves i of N.

On a file system, locks are `flock`s on a file beside the data; they die with their process. On an
object store they are leases (`storage/lease.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

from logitbank.errors import StoreError
from logitbank.storage.objects.lease import LOCK_NAME, Lease
from logitbank.storage.objects.store import ObjectStore

UNDECLARED, BASE = "undeclared", "base"


@contextlib.contextmanager
def builder_lock(objects: ObjectStore, worker: int | None = None, workers: int | None = None) -> Iterator[None]:
    """Hold the right to write for as long as the context lasts.

    Raises:
        StoreError: another process holds a lock that excludes this one, or no directory can be made there.
    """
    declared = worker is not None
    name = f"{worker}-of-{workers}" if declared else UNDECLARED
    if objects.local_root is None:
        # Workers exclude whoever claims to be the same one, an undeclared builder excludes everybody.
        excluded = {name, UNDECLARED}
        with _lease(
            objects, name, wait=False, excludes=lambda other: other != BASE if not declared else other in excluded
        ):
            yield
        return
    try:
        objects.local_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"--store {objects.url}: cannot be created: {error.strerror}; choose another place") from None
    files = [(LOCK_NAME, fcntl.LOCK_SH if declared else fcntl.LOCK_EX)]
    if declared:
        files.append((f"{LOCK_NAME}.{name}", fcntl.LOCK_EX))
    with contextlib.ExitStack() as held:
        for file, kind in files:
            descriptor = os.open(objects.local_root / file, os.O_RDWR | os.O_CREAT, 0o666)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"--store {objects.url}: another process is building it "
                    f"({'as the same worker' if file != LOCK_NAME else 'undeclared'}); wait for it, "
                    "or give every builder --worker I/N"
                ) from None
        yield


@contextlib.contextmanager
def base_lock(objects: ObjectStore) -> Iterator[None]:
    """Hold the right to create the base; other workers wait, then find it made.

    The base holds a table learnt from a pilot, which on an accelerator need not come out the same
    twice: two workers that both made one would mix their objects.
    """
    if objects.local_root is None:
        with _lease(objects, BASE, wait=True, excludes=lambda other: other == BASE):
            yield
        return
    descriptor = os.open(objects.local_root / f"{LOCK_NAME}.base", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lease(objects: ObjectStore, name: str, *, wait: bool, excludes: Callable[[str], bool]) -> Iterator[None]:
    """Hold a lease, and let `objects` write only while it holds."""
    lease = Lease(objects.url, name, excludes)
    lease.acquire(wait=wait)
    outer = objects.guard

    def guard() -> None:
        outer()
        lease.check()

    objects.guard = guard
    try:
        yield
    finally:
        objects.guard = outer
        lease.release()
