"""Manifests: which objects exist, with size and hashes; written last, so they decide what is done.

`manifest/base.json` covers the root, the examples and the vocabulary; `manifest/<view>/view.json`
the metadata documents of one view; `manifest/<view>/<shard>.json` the objects of one shard. In a label
store `manifest/<view>/fold-<fold>.json` covers what the scorer of one fold had seen. Each document
carries the hash of its own content, so a flipped bit in a manifest is found too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c

from logitbank.errors import CorruptStoreError
from logitbank.storage.objects.interface import ObjectStore

BASE_KEY = "manifest/base.json"
PLAN_PREFIX = "plan/"  # of what builds leave for one another: sealed like manifests, but nothing depends on it


@dataclass(frozen=True)
class ObjectEntry:
    """Size in bytes, CRC-32C (checked at every read) and SHA-256 (checked by `--verify`)."""

    size: int
    crc32c: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> ObjectEntry:
        """The entry that describes these bytes."""
        return cls(len(data), google_crc32c.value(data), hashlib.sha256(data).hexdigest())


def view_key(view: str) -> str:
    """Key of a view's own manifest."""
    return f"manifest/{view}/view.json"


def shard_key(view: str, shard: int) -> str:
    """Key of the manifest that marks one shard of a view as done."""
    return f"manifest/{view}/{shard}.json"


def plan_key(name: str) -> str:
    """Key of what planning found: of a view, or of the examples (`base`)."""
    return f"{PLAN_PREFIX}{name}.json"


def fold_key(view: str, fold: int) -> str:
    """Key of the manifest that says who scores one fold of a view of a label store."""
    return f"manifest/{view}/fold-{fold}.json"


def done_shards(objects: ObjectStore, view: str) -> set[int]:
    """Shards that a manifest marks as done, from one listing."""
    names = (key.rsplit("/", 1)[-1].removesuffix(".json") for key in objects.sizes(f"manifest/{view}"))
    return {int(name) for name in names if name.isdigit()}


def write_manifest(
    objects: ObjectStore, key: str, entries: Mapping[str, ObjectEntry], details: Mapping[str, Any]
) -> None:
    """Write a manifest document: `details` and the entries, sealed by their hash."""
    content = {
        **details,
        "objects": {name: [e.size, e.crc32c, e.sha256] for name, e in sorted(entries.items())},
    }
    sealed = {"content": content, "sha256": _seal(content)}
    objects.put(key, json.dumps(sealed, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(objects: ObjectStore, key: str) -> tuple[dict[str, ObjectEntry], dict[str, Any]]:
    """Entries and details of a manifest document.

    Raises:
        FileNotFoundError: there is none of that key.
        CorruptStoreError: it is not what was written.
    """
    return parse_manifest(key, objects.get(key))


def parse_manifest(key: str, data: bytes) -> tuple[dict[str, ObjectEntry], dict[str, Any]]:
    """What `read_manifest` gives, from a document that was fetched.

    Raises:
        CorruptStoreError: it is not what was written.
    """
    try:
        sealed = json.loads(data)
        content = sealed["content"]
        intact = set(sealed) == {"content", "sha256"} and sealed["sha256"] == _seal(content)
        entries = {name: ObjectEntry(*entry) for name, entry in content.pop("objects").items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise CorruptStoreError(f"{key}: damaged manifest (its content does not match its hash)")
    return entries, content


def read_object(objects: ObjectStore, key: str, entry: ObjectEntry, what: str = "") -> bytes:
    """The bytes of an object, checked against its entry.

    Raises:
        CorruptStoreError: missing, of another size, or changed; says which object and `what` it holds.
    """
    try:
        data = objects.get(key)
    except FileNotFoundError:
        data = None
    return check_object(key, data, entry, what)


def read_objects(
    objects: ObjectStore, keys: Sequence[str], entries: Mapping[str, ObjectEntry], what: str
) -> list[bytes]:
    """Several objects as `read_object` gives them.

    Raises:
        CorruptStoreError: also if no entry tells what an object should be.
    """
    for key in keys:
        if key not in entries:
            raise CorruptStoreError(f"{key} ({what}): not listed in any manifest")
    found = zip(keys, objects.get_each(keys), strict=True)
    return [check_object(key, data, entries[key], what) for key, data in found]


def check_object(key: str, data: bytes | None, entry: ObjectEntry, what: str = "") -> bytes:
    """What was fetched of an object (None: nothing), if it is what its entry says.

    Raises:
        CorruptStoreError: as `read_object`.
    """
    where = f"{key} ({what})" if what else key
    if data is None:
        raise CorruptStoreError(f"{where}: missing, although the manifest lists it")
    if len(data) != entry.size:
        raise CorruptStoreError(f"{where}: expected {entry.size} bytes, got {len(data)}")
    if google_crc32c.value(data) != entry.crc32c:
        raise CorruptStoreError(f"{where}: damaged (CRC-32C differs from the manifest's)")
    return data


def covers(details: Mapping[str, Any]) -> str:
    """In words, what the objects of a shard's manifest hold; nothing for another manifest."""
    if "shard" not in details:
        return ""
    first, stop = details["examples"]
    return f"view {details['view']}, shard {details['shard']}, examples {first} to {stop - 1}"


def _seal(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
