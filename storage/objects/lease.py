"""Leases: the locks of an object store, which offers none itself.

A writer puts an object below `.lock/<name>/` and renews it while it lives. Turns follow Lamport's bakery
(1974): put a lease without a number, look at all others, take a number larger than any, and proceed once
nobody in conflict is still choosing or has a smaller one. Of several writers that start at the same moment
exactly one proceeds. This needs only reads and listings that see every finished write, which S3, GCS and
Azure promise: no conditional writes, no common clock.

The lease of a dead process is removed at once if the process ran on this machine, otherwise after `LIFETIME`
seconds without renewal. A holder that could not renew its lease for that long (a machine that slept, a
network that was gone) stops writing.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitbank.errors import StoreBusyError, StoreError
from logitbank.storage.objects.interface import LOCK_NAME, ObjectStore

logger = logging.getLogger(__name__)

LIFETIME = 60.0  # seconds without renewal after which others remove a lease
RENEWALS = 6  # in a lifetime
SAFETY = 0.75  # of a lifetime: longer without renewal, and the holder itself stops writing


class Lease:
    """One process's claim to a name below one store.

    Args:
        objects: where the lease is; nobody else writes through them.
        name: what is claimed.
        conflicts: whether a lease of another name conflicts with this one.
    """

    def __init__(self, objects: ObjectStore, name: str, conflicts: Callable[[str], bool]) -> None:
        self._objects = objects
        self._where = f"--store {shlex.quote(objects.url)}"
        self._conflicts = conflicts
        self._key = f"{LOCK_NAME}/{name}/{uuid.uuid4().hex}"
        self._owner = _this_process()
        self._number = 0  # still choosing
        self._renewed = _now()
        self._one_at_a_time = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def acquire(self, *, wait: bool) -> None:
        """Come to hold the lease.

        Args:
            wait: for a living holder to release it, instead of refusing.

        Raises:
            StoreError: a living process conflicts with it, or the store cannot be written.
        """
        try:
            self._renew()
            self._thread.start()
            self._number = 1 + max((number for number, _ in self._others().values()), default=0)
            self._renew()
            self._take_turn(wait)
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Raise `StoreError` if others may have removed this lease."""
        if self._ran_out():
            raise StoreError(
                f"{self._where}: could not be reached for {_now() - self._renewed:.0f} seconds, so another process "
                "may be building it now; finished shards are kept, run the same command to resume"
            )

    def _ran_out(self) -> bool:
        """Once this is true it stays true: nobody renews a lease that ran out."""
        return _now() - self._renewed > SAFETY * LIFETIME

    def release(self) -> None:
        """Give the lease up."""
        self._released.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self._objects.delete(self._key)
        except (OSError, StoreError) as error:
            logger.warning("cannot remove a lease, which blocks other processes until it expires: %s", error)

    def _take_turn(self, wait: bool) -> None:
        seen: dict[str, tuple[bytes, float]] = {}
        told = False
        while True:
            ahead = {}
            for key, (number, content) in self._others().items():
                owner = _owner(content)
                first = seen.setdefault(key, (content, _now()))
                lives = _lives(owner)
                if lives is None and content != first[0]:
                    lives, seen[key] = True, (content, _now())
                if lives is False or (lives is None and _now() - first[1] > LIFETIME):
                    self._objects.delete(key)
                elif number == 0 or (number, key) < (self._number, self._key):
                    ahead[key] = (number, owner, lives)
            if not ahead:
                return
            for number, owner, lives in ahead.values():
                if number and lives and not wait:
                    raise StoreBusyError(
                        f"{self._where}: another process is building it (process {owner.get('pid')} on "
                        f"{owner.get('host')}); wait for it, or give every builder --worker I/N"
                    )
                if not told and (lives is None or wait):
                    told = True
                    holder = f"process {owner.get('pid')} on {owner.get('host')}"
                    logger.info("waiting for %s (at most %.0f s if it has died)", holder, LIFETIME)
            time.sleep(LIFETIME / RENEWALS / 10)

    def _others(self) -> dict[str, tuple[int, bytes]]:
        """Number and content of every lease that conflicts with this one."""
        found = {}
        for key in self._objects.sizes(LOCK_NAME):
            name = key.split("/")[1] if key.count("/") == 2 else None
            if key == self._key or name is None or not self._conflicts(name):
                continue
            try:
                content = self._objects.get(key)
            except FileNotFoundError:  # released since it was listed
                continue
            found[key] = (int(_owner(content).get("number", 0)), content)
        return found

    def _renew(self) -> None:
        with self._one_at_a_time:
            started = _now()
            document = {**self._owner, "number": self._number, "renewed": time.time()}
            try:
                self._objects.put(self._key, json.dumps(document, sort_keys=True).encode())
            except OSError as error:
                raise StoreError(f"{self._where}: cannot be written: {error.strerror or error}") from error
            self._renewed = started

    def _keep(self) -> None:
        while not (self._released.wait(LIFETIME / RENEWALS) or self._ran_out()):
            try:
                self._renew()
            except StoreError as error:
                logger.warning("cannot renew a lease: %s", error)


def _now() -> float:
    """Seconds on a clock that also counts while the machine sleeps, if the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "start": _start(os.getpid())}


def _machine() -> str | None:
    """What tells apart machines, boots and containers, so that a pid means one process; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _owner(content: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _lives(owner: dict[str, Any]) -> bool | None:
    """Whether the owner's process lives; None if this machine cannot know."""
    if owner.get("machine") is None or owner["machine"] != _machine():
        return None
    return bool(_start(owner["pid"]) == owner["start"])
