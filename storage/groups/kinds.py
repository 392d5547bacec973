"""The kinds of stores, which their roots name, how one is opened, and the message for the one that was not meant."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.errors import StoreError
from logitbank.storage.groups.verified import VerifiedObjects
from logitbank.storage.objects import BASE_KEY, ObjectStore, read_manifest, read_object

TOKENS = "logitbank-store"
LABELS = "logitbank-labels"

_WANTED = {
    TOKENS: "these tasks need a store of teacher tokens; build one into another --store with build-teacher-cache",
    LABELS: "tasks=[preference] needs a label store; build one into another --store with build-teacher-cache",
}
_NAMES = {TOKENS: "teacher store", LABELS: "label store"}
_BUILD = {TOKENS: "build-teacher-cache", LABELS: "build-teacher-cache --view none"}
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
    """Raise `StoreError` if a root says that its store is of the other kind."""
    found = attributes.get("format")
    if found != kind and found in _FOUND:
        raise StoreError(f"--store {shlex.quote(url)}: {_FOUND[found]}, but {_WANTED[kind]}")


def open_root(
    url: str, objects: ObjectStore, kind: str, versions: Sequence[int]
) -> tuple[VerifiedObjects, dict[str, Any]]:
    """Open a store for reading: the objects of its base manifest, all metadata checked, and its root's attributes.

    Args:
        url: of the store, for messages.
        objects: where it is.
        kind: what the caller reads.
        versions: of its format that the caller reads.

    Raises:
        StoreError: there is none, one of the other kind, or one of another format version.
        CorruptStoreError: a damaged manifest or damaged metadata.
    """
    place = f"--store {shlex.quote(url)}"
    source = VerifiedObjects(objects)
    try:
        source.add_manifest(BASE_KEY)
    except FileNotFoundError:
        raise StoreError(f"{place}: no {_NAMES[kind]} there (no {BASE_KEY}); build one with {_BUILD[kind]}") from None
    # Metadata that no array needs is checked as well.
    source.fetch([key for key in source if key.endswith("zarr.json")])
    attributes: dict[str, Any] = json.loads(source["zarr.json"].to_bytes())["attributes"]
    require_kind(url, attributes, kind)
    version = attributes.get("format_version")
    if attributes.get("format") != kind or version not in versions:
        raise StoreError(
            f"{place}: expected {kind} version {' or '.join(map(str, versions))}, "
            f"got {attributes.get('format')} version {version}; build it again"
        )
    return source, attributes


def view_names(objects: ObjectStore) -> tuple[str, ...]:
    """The views that a store has, finished or not, sorted."""
    return tuple(sorted({key.split("/")[1] for key in objects.sizes("manifest") if key.endswith("/view.json")}))
