"""Where a store's bytes lie: whole objects under a directory or a URL, and the manifests that say which exist."""

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
from logitbank.storage.objects.opening import open_objects
from logitbank.storage.objects.packed import INDEX_NAME
from logitbank.storage.objects.packing import PACK_BYTES, bytes_of, copy_objects, pack_objects

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
    "done_shards",
    "fold_key",
    "open_objects",
    "pack_objects",
    "plan_key",
    "read_manifest",
    "read_object",
    "read_objects",
    "shard_key",
    "view_key",
    "write_manifest",
]
