"""Objects as files below a directory, and locks as `flock`s on files beside them, which die with their process.

A file is written under a temporary name, synced and renamed. Temporary names end in `.partial`, and no
reader ever looks at those.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from logitbank.errors import StoreBusyError, StoreError
from logitbank.storage.objects.interface import LOCK_NAME, PARTIAL_SUFFIX

logger = logging.getLogger(__name__)


class LocalObjects:
    """An `ObjectStore` in a directory.

    Raises:
        StoreError: a file where a directory should be.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._root = Path(url.removeprefix("file://")).expanduser().absolute()
        for place in (self._root, *self._root.parents):
            if place.is_file():
                raise StoreError(
                    f"--store {shlex.quote(url)}: expected a directory, but {shlex.quote(str(place))} is a file"
                )

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        # pathlib would cost a tenth of decoding a shard and intern every name
        with open(f"{self._root}/{key}", "rb") as file:  # noqa: PTH123
            return file.read()

    def get_each(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """See `ObjectStore.get_each`."""
        for key in keys:
            try:
                yield self.get(key)
            except FileNotFoundError:
                yield None

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        return (self._root / key).is_file()

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        with self.writing(key) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        """A file to write an object to, piece by piece; it is there, whole, once the context ends without an error."""
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".", suffix=PARTIAL_SUFFIX)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        (self._root / key).unlink(missing_ok=True)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `ObjectStore.sizes`."""
        found: dict[str, int] = {}
        for directory, _, names in os.walk(self._root / prefix):
            for name in names:
                path = Path(directory) / name
                if name.endswith(PARTIAL_SUFFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
                    found[path.relative_to(self._root).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def remove_partials(self, older_than: float = 0.0) -> int:
        """See `ObjectStore.remove_partials`."""
        removed = 0
        for path in self._root.rglob("*" + PARTIAL_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
                    removed += 1
        return removed

    def require_writable(self) -> None:
        """See `ObjectStore.require_writable`."""
        nearest = next(place for place in (self._root, *self._root.parents) if place.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise StoreError(
                f"--store {shlex.quote(self.url)}: {shlex.quote(str(nearest))} is not writable; choose another "
                "place, or change its permissions"
            )

    @contextlib.contextmanager
    def builder_lock(self, worker: int | None = None, workers: int | None = None) -> Iterator[None]:
        """See `ObjectStore.builder_lock`."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"--store {shlex.quote(self.url)}: cannot be created: {error.strerror}; choose another place"
            ) from None
        with contextlib.ExitStack() as held:
            if worker is None:
                held.enter_context(self._locked(LOCK_NAME, fcntl.LOCK_EX, "undeclared"))
            else:
                held.enter_context(self._locked(LOCK_NAME, fcntl.LOCK_SH, "undeclared"))
                own = f"{LOCK_NAME}.{worker}-of-{workers}"
                held.enter_context(self._locked(own, fcntl.LOCK_EX, "as the same worker"))
            yield

    @contextlib.contextmanager
    def base_lock(self) -> Iterator[None]:
        """See `ObjectStore.base_lock`."""
        with self._locked(f"{LOCK_NAME}.base", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, kind: int, other: str | None = None) -> Iterator[None]:
        """Hold a lock on a file, refused where the `other` holds one; without `other` wait."""
        descriptor = os.open(self._root / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if other is not None:
                    raise StoreBusyError(
                        f"--store {shlex.quote(self.url)}: another process is building it ({other}); "
                        "wait for it, or give every builder --worker I/N"
                    ) from None
                logger.info("waiting for another process that is planning or creating the store")
                fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
