"""Checking every byte of a store against its manifests."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from logitbank.errors import StoreError
from logitbank.storage.objects import (
    BASE_KEY,
    LOCK_NAME,
    PLAN_PREFIX,
    ObjectStore,
    check_object,
    covers,
    fold_key,
    open_objects,
    read_manifest,
    shard_key,
    view_key,
)


def check_manifests(url: str, advance: Callable[[str], object]) -> list[str]:
    """Every object that is missing, damaged or listed nowhere, a line each.

    Args:
        url: the store.
        advance: called with each manifest as it is done.

    Raises:
        StoreError: there is no store at all.
    """
    problems: list[str] = []
    objects = open_objects(url)
    keys = list(objects.sizes())
    if not any(key.startswith("manifest/") for key in keys):
        raise StoreError(f"--store {shlex.quote(url)}: no store there (nothing under manifest/)")
    listed: set[str] = set()
    manifests = sorted(key for key in keys if key.startswith("manifest/"))
    if BASE_KEY not in manifests:
        problems.append(f"{BASE_KEY}: missing")
    for key in manifests:
        problems += _check_objects(objects, key, listed)
        advance(key)
    for key in keys:
        if key.startswith(PLAN_PREFIX):
            problems += _check_plan(objects, key)
        elif key not in listed and not key.startswith(("manifest/", LOCK_NAME)):
            problems.append(f"{key}: not listed in any manifest (an unfinished shard, or not of this store)")
    return problems


def parts_to_verify(url: str) -> int:
    """How many parts are looked at in a sound store: manifests, and the shards that they list."""
    manifests = [key for key in open_objects(url).sizes() if key.startswith("manifest/")]
    shards = [key for key in manifests if key.rsplit("/", 1)[-1].removesuffix(".json").isdigit()]
    return len(manifests) + len(shards)


def _check_objects(objects: ObjectStore, manifest: str, listed: set[str]) -> Iterator[str]:
    try:
        entries, details = read_manifest(objects, manifest)
    except StoreError as error:
        yield str(error)
        return
    what = covers(details)
    if manifest != (expected := _key_of(details)):
        yield f"{manifest}: holds the content of {expected}"
    for (key, entry), found in zip(entries.items(), objects.get_each(entries), strict=True):
        listed.add(key)
        try:
            data = check_object(key, found, entry, what)
        except StoreError as error:
            yield str(error)
            continue
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            yield f"{key} ({what}): damaged (SHA-256 differs from the manifest's)"


def _check_plan(objects: ObjectStore, key: str) -> Iterator[str]:
    """What a build left for the next one, which makes it again if it is gone."""
    try:
        read_manifest(objects, key)
    except StoreError as error:
        yield f"{error}; delete it, a build plans again without it"


def _key_of(details: Mapping[str, Any]) -> str:
    """The key of the manifest that says this."""
    if "shard" in details:
        return shard_key(details["view"], details["shard"])
    if "fold" in details:
        return fold_key(details["view"], details["fold"])
    return view_key(details["view"]) if "view" in details else BASE_KEY
