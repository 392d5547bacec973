"""Whole objects under a URL: a directory, or any store that fsspec can reach.

Objects are written once, whole. On a file system that is a temporary name, fsync, rename; on an
object store it is one PUT. Temporary names end in `.partial`, and no reader ever looks at those.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from storage.errors import StoreError

PARTIAL_SUFFIX = ".partial"


class ObjectStore:
    """Get, put, list and delete objects by key (`a/b/c`) below one URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.local_root: Path | None = None
        if "://" not in url or url.startswith("file://"):
            self.local_root = Path(url.removeprefix("file://")).expanduser().absolute()
            self._filesystem: Any = None
            self._root = str(self.local_root)
        else:
            try:
                self._filesystem, self._root = fsspec.core.url_to_fs(self.url)
            except (ImportError, ValueError) as error:
                raise StoreError(f"--store {url}: {error}") from None

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        if self.local_root is not None:
            return (self.local_root / key).read_bytes()
        return bytes(self._filesystem.cat_file(f"{self._root}/{key}"))

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""
        if self.local_root is not None:
            return (self.local_root / key).is_file()
        return bool(self._filesystem.isfile(f"{self._root}/{key}"))

    def size(self, key: str) -> int:
        """The object's size in bytes; FileNotFoundError where there is none."""
        if self.local_root is not None:
            return (self.local_root / key).stat().st_size
        return int(self._filesystem.info(f"{self._root}/{key}")["size"])

    def put(self, key: str, data: bytes) -> None:
        """Write the object whole; after a crash it is either there or not."""
        if self.local_root is None:
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
        elif self.exists(key):
            self._filesystem.rm_file(f"{self._root}/{key}")

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys of all objects below `prefix`, sorted; unfinished writes are left out."""
        base = f"{self._root}/{prefix}".rstrip("/")
        if self.local_root is not None:
            if not Path(base).is_dir():
                return
            found = [
                (Path(directory) / name).relative_to(self._root).as_posix()
                for directory, _, names in os.walk(base)
                for name in names
            ]
        else:
            self._filesystem.invalidate_cache()
            listed = self._filesystem.find(base)
            found = [name[len(self._root) :].lstrip("/") for name in listed]
        yield from sorted(key for key in found if not key.endswith(PARTIAL_SUFFIX))

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


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
