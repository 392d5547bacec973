"""Where a store's bytes are: whole objects under a directory or a URL, and the manifests that say which exist.

What talks to the hub is imported with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitbank.storage.objects.interface import LOCK_NAME, ObjectStore
from logitbank.storage.objects.manifest import (
    BASE_KEY,
    PLAN_PREFIX,
    ObjectEntry,
    check_object,
    covers,
    done_shards,
    fold_key,
    plan_key,
    read_manifest,
    read_object,
    read_objects,
    shard_key,
    view_key,
    write_manifest,
)
from logitbank.storage.objects.opening import open_objects, open_writable
from logitbank.storage.objects.packed import INDEX_NAME
from logitbank.storage.objects.packing import PACK_BYTES, bytes_of, copy_objects, pack_objects

if TYPE_CHECKING:
    from logitbank.storage.objects.hub import create_dataset, push_folder

__all__ = [
    "BASE_KEY",
    "INDEX_NAME",
    "LOCK_NAME",
    "PACK_BYTES",
    "PLAN_PREFIX",
    "ObjectEntry",
    "ObjectStore",
    "bytes_of",
    "check_object",
    "copy_objects",
    "covers",
    "create_dataset",
    "done_shards",
    "fold_key",
    "open_objects",
    "open_writable",
    "pack_objects",
    "plan_key",
    "push_folder",
    "read_manifest",
    "read_object",
    "read_objects",
    "shard_key",
    "view_key",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    """A public name of `hub`."""
    if name not in ("create_dataset", "push_folder"):
        raise AttributeError(f"module 'logitbank.storage.objects' has no attribute {name!r}")
    return getattr(importlib.import_module("logitbank.storage.objects.hub"), name)
