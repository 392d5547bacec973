"""Whole objects under a URL: a directory, or any object store that fsspec can reach.

Objects are written once, whole. On a file system that is a temporary name, fsync, rename; on an
object store it is one PUT. Temporary names end in `.partial`, and no reader ever looks at those.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from logitbank.errors import StoreError

PARTIAL_SUFFIX = ".partial"


class ObjectStore:
    """Get, put, list and delete objects by key (`a/b/c`) below one URL.

    Attributes:
        url: as given, without a slash at its end.
        local_root: the directory, or None for an object store.
        guard: called before each put; raises where this process may write no longer.

    Raises:
        StoreError: a URL that fsspec does not know, or a file where a directory should be; from any method,
            an object store that does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.local_root: Path | None = None
        self.guard: Callable[[], object] = lambda: None
        if "://" not in url or url.startswith("file://"):
            self.local_root = Path(url.removeprefix("file://")).expanduser().absolute()
            self._filesystem: Any = None
            self._root = str(self.local_root)
            for place in (self.local_root, *self.local_root.parents):
                if place.is_file():
                    raise StoreError(f"--store {url}: expected a directory, but {place} is a file")
            return
        try:  # what other processes have written in the meantime must be seen: no cached listings
            self._filesystem, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            scheme = url.split("://")[0]
            raise StoreError(f"--store {url}: {error}; {scheme}:// needs a package that is not installed") from None
        except ValueError as error:
            raise StoreError(f"--store {url}: {error}; expected a directory or a URL as s3://bucket/name") from None
        self._root = self._root.rstrip("/")

    def require_writable(self) -> None:
        """Raise `StoreError` where it is plain already that nothing can be written; creates nothing."""
        if self.local_root is not None:
            nearest = next(place for place in (self.local_root, *self.local_root.parents) if place.exists())
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise StoreError(f"--store {self.url}: nothing can be written into {nearest}; choose another place")

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        if self.local_root is not None:
            # pathlib would cost a tenth of decoding a shard and intern every name
            with open(f"{self._root}/{key}", "rb") as file:  # noqa: PTH123
                return file.read()
        with self._remote():
            return bytes(self._filesystem.cat_file(f"{self._root}/{key}"))

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""
        if self.local_root is not None:
            return (self.local_root / key).is_file()
        try:
            with self._remote():
                return bool(self._filesystem.info(f"{self._root}/{key}")["type"] == "file")
        except FileNotFoundError:
            return False

    def put(self, key: str, data: bytes) -> None:
        """Write the object whole; after a crash it is either there or not."""
        self.guard()
        if self.local_root is None:
            with self._remote():
                self._filesystem.pipe_file(f"{self._root}/{key}", data)
            return
        target = self.local_root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".", suffix=PARTIAL_SUFFIX)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        if self.local_root is not None:
            (self.local_root / key).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError), self._remote():
            self._filesystem.rm_file(f"{self._root}/{key}")

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Keys of all objects below `prefix`, sorted, with their bytes; unfinished writes are left out."""
        base = f"{self._root}/{prefix}".rstrip("/")
        found: dict[str, int] = {}
        if self.local_root is not None:
            for directory, _, names in os.walk(base):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
                        path = Path(directory) / name
                        found[path.relative_to(self._root).as_posix()] = path.stat().st_size
        else:
            with contextlib.suppress(FileNotFoundError), self._remote():
                for name, about in self._filesystem.find(base, detail=True).items():
                    found[name[len(self._root) :].lstrip("/")] = int(about["size"])
        return {key: found[key] for key in sorted(found) if not key.endswith(PARTIAL_SUFFIX)}

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys of all objects below `prefix`, sorted; unfinished writes are left out."""
        yield from self.sizes(prefix)

    def remove_partials(self, older_than: float = 0.0) -> int:
        """Remove what killed writers left, if last written `older_than` seconds ago; returns how many files."""
        if self.local_root is None:
            return 0
        removed = 0
        for path in self.local_root.rglob("*" + PARTIAL_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
                    removed += 1
        return removed

    @contextlib.contextmanager
    def _remote(self) -> Iterator[None]:
        """Errors of an object store's own client as one line."""
        try:
            yield
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:  # each client has its own family: no credentials, no connection …
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise StoreError(f"--store {self.url}: {lines[0]}; what is finished is kept") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
