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
        revision: branch, tag or commit of a store on the hub; None takes the URL's, or the newest.
        cache_bytes: how much decompressed teacher signal to keep in memory.

    Returns:
        The store: `examples[i]` is an example, `read([0, 5], view=…)` are its teacher rows.

    Raises:
        StoreError: there is no store, its kind or format version is different, or a revision is given for a store
            without revisions.
        CorruptStoreError: a damaged root, manifest or example table.
    """
    place = os.fspath(url)
    return TeacherStore.open(place if revision is None else _at_revision(place, revision), cache_bytes=cache_bytes)


def _at_revision(url: str, revision: str) -> str:
    """The URL of a store on the hub, at a revision."""
    found = HUB_URL.fullmatch(url)
    if found is None:
        raise StoreError(
            f"revision: expected a store on the hub (hf://datasets/ORG/NAME) with a revision, got {url}; leave out "
            "the revision"
        )
    if found[2] not in (None, f"@{revision}"):
        raise StoreError(f"revision: the URL {url} names a different revision than {revision}; give only one")
    return f"{found[1]}@{revision}{found[3] or ''}"
