"""What can be wrong with a store or with result files."""

from __future__ import annotations


class StoreError(ValueError):
    """A store or result directory that cannot be used as asked; says which part and what to do."""


class CorruptStoreError(StoreError):
    """Bytes that do not match their checksum or manifest; names array, shard and examples."""


class IncompleteStoreError(StoreError):
    """A view with shards still to be written."""
