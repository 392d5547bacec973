"""Objects in any store that fsspec can reach (S3, GCS …), each written by one PUT; locks there are leases."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec

from logitbank.errors import StoreError
from logitbank.storage.objects.interface import PARTIAL_SUFFIX
from logitbank.storage.objects.lease import Lease

UNDECLARED, BASE = "undeclared", "base"
REQUESTS = 16  # at the same time


class RemoteObjects:
    """An `ObjectStore` over a network.

    Raises:
        StoreError: a URL that fsspec does not know.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._leases: list[Lease] = []
        place = f"--store {shlex.quote(url)}"
        try:  # what other processes have written in the meantime must be seen: no cached listings
            self._filesystem: Any
            self._filesystem, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            scheme = url.split("://")[0]
            raise StoreError(f"{place}: {error}; {scheme}:// needs a package that is not installed") from None
        except ValueError as error:
            raise StoreError(f"{place}: {error}; expected a directory or a URL such as s3://bucket/name") from None
        self._root = root.rstrip("/")

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        with self._one_line():
            return bytes(self._filesystem.cat_file(f"{self._root}/{key}"))

    def get_each(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """See `ObjectStore.get_each`; up to `REQUESTS` are under way at the same time."""

        def get(key: str) -> bytes | None:
            try:
                return self.get(key)
            except FileNotFoundError:
                return None

        wanted = list(keys)
        with ThreadPoolExecutor(max_workers=REQUESTS) as pool:
            for start in range(0, len(wanted), REQUESTS):  # no more than these are in memory
                yield from pool.map(get, wanted[start : start + REQUESTS])

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        try:
            with self._one_line():
                return bool(self._filesystem.info(f"{self._root}/{key}")["type"] == "file")
        except FileNotFoundError:
            return False

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        for lease in self._leases:
            lease.check()
        with self._one_line():
            self._filesystem.pipe_file(f"{self._root}/{key}", data)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with contextlib.suppress(FileNotFoundError), self._one_line():
            self._filesystem.rm_file(f"{self._root}/{key}")

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `ObjectStore.sizes`."""
        found: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError), self._one_line():
            for name, about in self._filesystem.find(f"{self._root}/{prefix}".rstrip("/"), detail=True).items():
                if not name.endswith(PARTIAL_SUFFIX):
                    found[name[len(self._root) :].lstrip("/")] = int(about["size"])
        return dict(sorted(found.items()))

    def remove_partials(self, older_than: float = 0.0) -> int:
        """See `ObjectStore.remove_partials`; a PUT leaves nothing half-written."""
        return 0

    def require_writable(self) -> None:
        """See `ObjectStore.require_writable`; only writing tells."""

    @contextlib.contextmanager
    def builder_lock(self, worker: int | None = None, workers: int | None = None) -> Iterator[None]:
        """See `ObjectStore.builder_lock`."""
        if worker is None:
            with self._leased(UNDECLARED, wait=False, conflicts=lambda other: other != BASE):
                yield
        else:
            own = f"{worker}-of-{workers}"
            with self._leased(own, wait=False, conflicts=lambda other: other in (own, UNDECLARED)):
                yield

    @contextlib.contextmanager
    def base_lock(self) -> Iterator[None]:
        """See `ObjectStore.base_lock`."""
        with self._leased(BASE, wait=True, conflicts=lambda other: other == BASE):
            yield

    @contextlib.contextmanager
    def _leased(self, name: str, *, wait: bool, conflicts: Callable[[str], bool]) -> Iterator[None]:
        """Hold a lease, and write only while it holds."""
        lease = Lease(RemoteObjects(self.url), name, conflicts)  # its own objects: renewing asks no lease
        lease.acquire(wait=wait)
        self._leases.append(lease)
        try:
            yield
        finally:
            self._leases.remove(lease)
            lease.release()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Errors of an object store's own client as one line."""
        try:
            yield
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:  # each client has its own family: no credentials, no connection …
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise StoreError(f"--store {shlex.quote(self.url)}: {lines[0]}; finished work is kept") from error
