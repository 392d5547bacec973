"""Packing a store for sharing, and unpacking it again: the same objects, checked on the way."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from logitbank.errors import CorruptStoreError, StoreError
from logitbank.storage.objects.interface import LOCK_NAME, ObjectStore
from logitbank.storage.objects.local import LocalObjects
from logitbank.storage.objects.manifest import (
    BASE_KEY,
    PLAN_PREFIX,
    ObjectEntry,
    check_object,
    covers,
    parse_manifest,
    read_manifest,
)
from logitbank.storage.objects.packed import INDEX_NAME, write_index

PACK_BYTES = 1 << 30  # a pack takes shards until it is as large; then the next begins
BATCH = 64  # manifests whose objects are asked for together
PACKS = "packs"
SHARD_MANIFEST = re.compile(r"manifest/([^/]+)/(\d+)\.json")


def manifests_of(objects: ObjectStore, views: Collection[str] | None = None) -> list[str]:
    """Keys of all manifests, those of some views alone if given: base first, then view by view, shards in order."""
    keys = [key for key in objects.sizes("manifest") if views is None or key == BASE_KEY or key.split("/")[1] in views]

    def place(key: str) -> tuple[bool, str, bool, int]:
        shard = SHARD_MANIFEST.fullmatch(key)
        return key != BASE_KEY, key.split("/")[1], shard is not None, int(shard[2]) if shard else 0

    return sorted(keys, key=place)


def pack_objects(
    objects: ObjectStore,
    folder: Path,
    *,
    views: Collection[str] | None = None,
    pack_bytes: int = PACK_BYTES,
    advance: Callable[[int], object] = lambda size: None,
) -> list[str]:
    """Write packs and their index into a directory, the index last.

    Args:
        objects: the store; what no manifest lists is left out, such as plans of builds.
        folder: created if missing. Packs of an earlier call that the index no longer names are removed.
        views: which views; all by default.
        pack_bytes: a pack is closed once it holds as many bytes. A shard is never divided.
        advance: called with the bytes of each object.

    Returns:
        Names of the files written, relative to the directory.

    Raises:
        CorruptStoreError: an object is not what its manifest says.
        OSError: the disk refuses.
    """
    target = LocalObjects(str(folder))
    target.delete(INDEX_NAME)  # the packs below change now
    packs: dict[str, list[tuple[str, int]]] = {}
    for name, keys in _groups(objects, views, pack_bytes):
        packs[name] = []
        with target.writing(name) as file:
            for batch in _batches(keys):
                for _, key, data in _contents(objects, _documents(objects, batch)):
                    file.write(data)
                    packs[name].append((key, len(data)))
                    advance(len(data))
    for stale in set(target.sizes(PACKS)) - packs.keys():
        target.delete(stale)
    target.put(INDEX_NAME, write_index(packs))
    return [*packs, INDEX_NAME]


def copy_objects(
    objects: ObjectStore,
    target: ObjectStore,
    *,
    views: Collection[str] | None = None,
    advance: Callable[[int], object] = lambda size: None,
) -> int:
    """Copy a store, object by object; what an earlier call copied is not fetched again.

    Args:
        objects: the store.
        target: where it goes: nowhere near any other store.
        views: which views; all by default.
        advance: called with the bytes of each manifest's objects, fetched or there.

    Returns:
        How many bytes were fetched.

    Raises:
        StoreError: there is another store.
        CorruptStoreError: an object is not what its manifest says.
    """
    fetched = 0
    with target.builder_lock():
        target.remove_partials()
        for batch in _batches(manifests_of(objects, views)):
            documents = _documents(objects, batch)
            missing = {}
            for manifest, document in documents.items():
                if not target.exists(manifest):
                    missing[manifest] = document
                elif target.get(manifest) == document:
                    entries, _ = parse_manifest(manifest, document)
                    advance(len(document) + sum(entry.size for entry in entries.values()))
                else:
                    raise StoreError(
                        f"--output {shlex.quote(target.url)}: its {manifest} belongs to a different store than "
                        f"{shlex.quote(objects.url)}; choose another directory"
                    )
            for manifest, contents in groupby(_contents(objects, missing), key=lambda content: content[0]):
                for _, key, data in contents:
                    if key != manifest:
                        target.put(key, data)
                    fetched += len(data)
                    advance(len(data))
                target.put(manifest, missing[manifest])  # last: it says that the others are there
    return fetched


def bytes_of(objects: ObjectStore, views: Collection[str] | None = None) -> int:
    """Bytes of what would be packed or copied."""
    chosen = {key.split("/")[1] for key in manifests_of(objects, views) if key != BASE_KEY}

    def is_chosen(key: str) -> bool:
        if key.startswith((LOCK_NAME, PLAN_PREFIX)):
            return False
        return key == BASE_KEY or not key.startswith(("manifest/", "teachers/")) or key.split("/")[1] in chosen

    return sum(size for key, size in objects.sizes().items() if is_chosen(key) and not key.startswith(PLAN_PREFIX))


def _groups(objects: ObjectStore, views: Collection[str] | None, pack_bytes: int) -> Iterator[tuple[str, list[str]]]:
    """Names of packs, and the manifests whose objects each holds."""
    sizes = objects.sizes("manifest")
    group: list[str] = []
    held, owner, number = 0, "base", 0
    for manifest in manifests_of(objects, views):
        own = "base" if manifest == BASE_KEY else manifest.split("/")[1]
        if group and (own != owner or held >= pack_bytes):
            yield f"{PACKS}/{owner}-{number:05d}.pack", group
            number = number + 1 if own == owner else 0
            group, held = [], 0
        owner = own
        group.append(manifest)
        entries, _ = read_manifest(objects, manifest)
        held += sizes[manifest] + sum(entry.size for entry in entries.values())
    if group:
        yield f"{PACKS}/{owner}-{number:05d}.pack", group


def _batches(manifests: Sequence[str]) -> Iterator[Sequence[str]]:
    """A few at a time, whose objects are then asked for together."""
    for start in range(0, len(manifests), BATCH):
        yield manifests[start : start + BATCH]


def _documents(objects: ObjectStore, manifests: Sequence[str]) -> dict[str, bytes]:
    """The manifests themselves, as they are stored."""
    found: dict[str, bytes] = {}
    for key, data in zip(manifests, objects.get_each(manifests), strict=True):
        if data is None:
            raise CorruptStoreError(f"{key}: missing, although it was listed")
        found[key] = data
    return found


def _contents(objects: ObjectStore, documents: Mapping[str, bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Manifest, key and bytes: each manifest, then its objects, checked, in the order of a pack.

    Objects that the first ranks need come before those that only more ranks need. Manifests are asked for again, so
    that all of it is one run of bytes where it comes from a pack.
    """
    parsed = {manifest: parse_manifest(manifest, document) for manifest, document in documents.items()}
    wanted = [
        (manifest, key)
        for manifest, (entries, _) in parsed.items()
        for key in (manifest, *sorted(entries, key=_by_block))
    ]
    for (manifest, key), data in zip(wanted, objects.get_each([key for _, key in wanted]), strict=True):
        if key == manifest:
            yield manifest, key, documents[manifest]
        else:
            entries, details = parsed[manifest]
            yield manifest, key, _checked(key, data, entries[key], covers(details))


def _checked(key: str, data: bytes | None, entry: ObjectEntry, what: str) -> bytes:
    found = check_object(key, data, entry, what)
    if hashlib.sha256(found).hexdigest() != entry.sha256:
        raise CorruptStoreError(f"{key} ({what}): damaged (SHA-256 differs from the manifest's)")
    return found


def _by_block(key: str) -> tuple[int, str]:
    """Sorts objects of a shard by their block of ranks; those without one belong to the first."""
    chunk = key.partition("/c/")[2].split("/")
    return (int(chunk[1]) if len(chunk) > 1 else 0), key
