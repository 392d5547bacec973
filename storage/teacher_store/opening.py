"""Opening a store by its URL, for programs; commands open the one that `--store` names."""

from __future__ import annotations

import os
import re

from logitbank.errors import StoreError
from logitbank.storage.teacher_store.reader import TeacherStore

CACHE_BYTES = 1 << 30
HUB_URL = re.compile(r"(hf://datasets/[^/@]+/[^/@]+)(@[^/]+)?(/.*)?")


def open_store(
    url: str | os.PathLike[str], *, revision: str | None = None, cache_bytes: int = CACHE_BYTES
) -> TeacherStore:
    """Open a teacher store for reading.

    Args:
        url: a directory, or a URL that fsspec can reach: `s3://…`, `hf://datasets/ORG/NAME`, `https://…`.
        revision: branch, tag or commit of a store on the hub; None takes what the URL says, or the newest.
        cache_bytes: how much decompressed teacher signal to keep in memory.

    Returns:
        The store: `examples[i]` is an example, `read([0, 5], view=…)` are its teacher rows.

    Raises:
        StoreError: there is none, one of another kind or format version, or a revision of what has none.
        CorruptStoreError: a damaged root, manifest or example table.
    """
    place = os.fspath(url)
    return TeacherStore.open(place if revision is None else _at_revision(place, revision), cache_bytes=cache_bytes)


def _at_revision(url: str, revision: str) -> str:
    """The URL of a store on the hub, at a revision."""
    found = HUB_URL.fullmatch(url)
    if found is None:
        raise StoreError(
            f"revision: expected a store on the hub (hf://datasets/ORG/NAME), got {url}; leave the revision out"
        )
    if found[2] not in (None, f"@{revision}"):
        raise StoreError(f"revision: the URL {url} names another one than {revision}; name one of the two")
    return f"{found[1]}@{revision}{found[3] or ''}"
