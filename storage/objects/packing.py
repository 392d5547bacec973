"""Packing a store for sharing, and unpacking it again: the same objects, checked on the way."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from logitbank.errors import CorruptStoreError, StoreError
from logitbank.storage.objects.interface import LOCK_NAME, ObjectStore
from logitbank.storage.objects.local import LocalObjects
from logitbank.storage.objects.manifest import BASE_KEY, PLAN_PREFIX, ObjectEntry, check_object, covers, read_manifest
from logitbank.storage.objects.packed import INDEX_NAME, write_index

PACK_BYTES = 1 << 30  # a pack takes shards until it is as large; then the next begins
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
            for manifest in keys:
                for key, data in _contents(objects, manifest):
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
        StoreError: another store lies there.
        CorruptStoreError: an object is not what its manifest says.
    """
    fetched = 0
    with target.builder_lock():
        target.remove_partials()
        for manifest in manifests_of(objects, views):
            wanted = objects.get(manifest)
            if target.exists(manifest):
                if target.get(manifest) != wanted:
                    raise StoreError(
                        f"--output {shlex.quote(target.url)}: its {manifest} is that of another store than "
                        f"{shlex.quote(objects.url)}; choose another directory"
                    )
                advance(sum(entry.size for entry in read_manifest(objects, manifest)[0].values()))
                continue
            for key, data in _contents(objects, manifest):
                if key != manifest:
                    target.put(key, data)
                fetched += len(data)
                advance(len(data))
            target.put(manifest, wanted)
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


def _contents(objects: ObjectStore, manifest: str) -> Iterator[tuple[str, bytes]]:
    """A manifest, then its objects, checked: those that the first ranks need before those that only more ranks need."""
    entries, details = read_manifest(objects, manifest)
    yield manifest, objects.get(manifest)
    keys = sorted(entries, key=_by_block)
    for key, data in zip(keys, objects.get_each(keys), strict=True):
        yield key, _checked(key, data, entries[key], covers(details))


def _checked(key: str, data: bytes | None, entry: ObjectEntry, what: str) -> bytes:
    found = check_object(key, data, entry, what)
    if hashlib.sha256(found).hexdigest() != entry.sha256:
        raise CorruptStoreError(f"{key} ({what}): damaged (SHA-256 differs from the manifest's)")
    return found


def _by_block(key: str) -> tuple[int, str]:
    """Sorts objects of a shard by their block of ranks; those without one belong to the first."""
    chunk = key.partition("/c/")[2].split("/")
    return (int(chunk[1]) if len(chunk) > 1 else 0), key
