"""Who may write a store: one undeclared builder, or N workers that declared themselves i of N.

Locks are `flock`s on a file beside the data; they die with their process. Object stores offer no
such lock: there, two builders of one store waste work but, writing identical bytes, do no harm.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from storage.errors import StoreError
from storage.objects import ObjectStore

LOCK_NAME = ".lock"


@contextlib.contextmanager
def builder_lock(objects: ObjectStore, worker: int | None = None, workers: int | None = None) -> Iterator[None]:
    """Hold the right to write for as long as the context lasts.

    Raises:
        StoreError: another process holds a lock that excludes this one.
    """
    if objects.local_root is None:
        yield
        return
    objects.local_root.mkdir(parents=True, exist_ok=True)
    declared = worker is not None
    files = [(LOCK_NAME, fcntl.LOCK_SH if declared else fcntl.LOCK_EX)]
    if declared:
        files.append((f"{LOCK_NAME}.{worker}-of-{workers}", fcntl.LOCK_EX))
    with contextlib.ExitStack() as held:
        for name, kind in files:
            descriptor = os.open(objects.local_root / name, os.O_RDWR | os.O_CREAT, 0o666)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"--store {objects.url}: another process is building it "
                    f"({'as the same worker' if name != LOCK_NAME else 'undeclared'}); wait for it, "
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
        yield
        return
    descriptor = os.open(objects.local_root / f"{LOCK_NAME}.base", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
