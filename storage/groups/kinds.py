"""The kinds of stores, which their roots name, and the message for the one that was not meant."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from logitbank.errors import StoreError
from logitbank.storage.objects import BASE_KEY, ObjectStore, read_manifest, read_object

TOKENS = "logitbank-store"
LABELS = "logitbank-labels"

_WANTED = {
    TOKENS: "these tasks need a store of teacher tokens; build one into another --store with build-teacher-cache",
    LABELS: "tasks=[preference] needs a label store; build one into another --store with build-teacher-cache",
}
_FOUND = {TOKENS: "holds teacher tokens", LABELS: "is a label store, which tasks=[preference] reads"}


def read_root(objects: ObjectStore) -> dict[str, Any]:
    """Attributes of a store's root group, verified.

    Raises:
        FileNotFoundError: there is no store.
        CorruptStoreError: a damaged manifest or root.
    """
    entries, _ = read_manifest(objects, BASE_KEY)
    found = json.loads(read_object(objects, "zarr.json", entries["zarr.json"]))["attributes"]
    return dict(found)


def require_kind(url: str, attributes: Mapping[str, Any], kind: str) -> None:
    """Raise `StoreError` where a root says that its store is of the other kind."""
    found = attributes.get("format")
    if found != kind and found in _FOUND:
        raise StoreError(f"--store {shlex.quote(url)}: {_FOUND[found]}, but {_WANTED[kind]}")
