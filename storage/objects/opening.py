"""Which kind of place a URL names."""

from __future__ import annotations

from pathlib import Path

from logitbank.errors import StoreError
from logitbank.storage.objects.interface import ObjectStore
from logitbank.storage.objects.local import LocalObjects
from logitbank.storage.objects.packed import INDEX_NAME, FolderSource, PackedObjects
from logitbank.storage.objects.remote import RemoteObjects

READ_ONLY = ("https://", "http://", "hf://")


def open_objects(url: str) -> ObjectStore:
    """The objects below a directory or a URL that fsspec can reach; nothing is created.

    `https://` and `hf://datasets/…` hold packed stores, which are only read; so may a directory.

    Raises:
        StoreError: a URL that fsspec does not know, a file where a directory should be, or no packed store.
    """
    if url.startswith(("https://", "http://")):
        from logitbank.storage.objects.web import WebSource  # its client is slow to import

        return PackedObjects(url, WebSource(url))
    if url.startswith("hf://"):
        from logitbank.storage.objects.hub import open_hub  # as above

        return PackedObjects(url, open_hub(url))
    if "://" in url and not url.startswith("file://"):
        return RemoteObjects(url)
    objects, folder = LocalObjects(url), Path(url.removeprefix("file://")).expanduser()
    return PackedObjects(url, FolderSource(folder)) if (folder / INDEX_NAME).is_file() else objects


def open_writable(url: str) -> ObjectStore:
    """The objects below a directory or URL in which a store can be written; nothing is created.

    Raises:
        StoreError: see `open_objects`; or it is plain already that nothing can be written there.
    """
    if url.startswith(READ_ONLY):  # whose index would be asked for first
        raise StoreError(
            f"--store {url}: stores there are read-only; write to a directory or to a URL such as s3://bucket/store"
        )
    objects = open_objects(url)
    objects.require_writable()
    return objects
