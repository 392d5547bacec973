"""Putting a Zarr group that was made in memory where a store is, its manifest last."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from zarr.abc.buffer import Buffer

from logitbank.errors import StoreError
from logitbank.storage.objects import ObjectEntry, ObjectStore, write_manifest

VIEW_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def require_view_name(view: str) -> None:
    """Raise `StoreError` for a name that no view can have."""
    if not VIEW_NAME.fullmatch(view):
        raise StoreError(f"view: expected lower-case letters, digits and underscores, got {view!r}")


def put_objects(
    objects: ObjectStore,
    manifest: str,
    contents: Mapping[str, Buffer],
    details: Mapping[str, Any],
    *,
    what: str,
    below: str = "",
    also: Mapping[str, ObjectEntry] | None = None,
) -> None:
    """Write objects, then the manifest that says that they exist.

    Args:
        objects: where they go.
        manifest: its key.
        contents: what to write, by key.
        details: what the manifest says besides.
        what: what they are, for the message where the place refuses.
        below: goes before each key.
        also: what the manifest lists besides: objects that are already there.

    Raises:
        StoreError: the place cannot be written; what was finished is kept.
    """
    entries = {below + key: entry for key, entry in put_parts(objects, contents, what=what, below=below).items()}
    entries.update(also or {})
    with _one_line(objects, what):
        write_manifest(objects, manifest, entries, details)


def put_parts(
    objects: ObjectStore, contents: Mapping[str, Buffer], *, what: str, below: str = ""
) -> dict[str, ObjectEntry]:
    """Write objects that a manifest is still to list; what it has to say of each, by key.

    Raises:
        StoreError: see `put_objects`.
    """
    entries = {}
    with _one_line(objects, what):
        for key, buffer in sorted(contents.items()):
            data = buffer.to_bytes()
            objects.put(below + key, data)
            entries[key] = ObjectEntry.of(data)
    return entries


@contextlib.contextmanager
def _one_line(objects: ObjectStore, what: str) -> Iterator[None]:
    """Report a full disk and its like on one line that says what is kept."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"--store {shlex.quote(objects.url)}: cannot write {what}: {error.strerror or error}; "
            "finished shards are kept, run the same command to resume"
        ) from error
