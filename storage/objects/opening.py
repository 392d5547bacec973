"""Which kind of place a URL names."""

from __future__ import annotations

from logitbank.storage.objects.interface import ObjectStore
from logitbank.storage.objects.local import LocalObjects
from logitbank.storage.objects.remote import RemoteObjects


def open_objects(url: str) -> ObjectStore:
    """The objects below a directory or a URL that fsspec can reach; nothing is created.

    Raises:
        StoreError: a URL that fsspec does not know, or a file where a directory should be.
    """
    return LocalObjects(url) if "://" not in url or url.startswith("file://") else RemoteObjects(url)
