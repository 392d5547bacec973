"""What a store is built from, as JSON: compared when a build resumes, hashed into fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from logitbank.errors import StoreError
from logitbank.experiment import flatten

SHORT_DIGITS = 8  # of a fingerprint, where a person reads it


def refuse_difference(
    where: str, stored: Mapping[str, Any], requested: Mapping[str, Any], unsaid: Mapping[str, Any] | None = None
) -> None:
    """Raise `StoreError` for the most telling setting in which two identities differ.

    Args:
        where: the beginning of the message.
        stored: identity of what exists.
        requested: identity of what is asked for.
        unsaid: what an identity that leaves a setting out means by that.
    """
    before, now = flatten(stored), flatten(requested)
    for key in sorted(before.keys() | now.keys(), key=_consequence):
        absent = (unsaid or {}).get(key, "nothing")
        old, new = before.get(key, absent), now.get(key, absent)
        if old != new:
            raise StoreError(
                f"{where}: created with {key} = {old}, but this run requests {new}; use the same settings to resume, "
                "or "
                "another --store"
            )


def _consequence(key: str) -> tuple[bool, int, str]:
    """Sorts settings that differ before what differs in their wake, which says less: the signal before its draws."""
    wake = ("count", "chunk_tokens", "shard_tokens", "hash")  # other examples, a store smaller than a shard
    rank = next((number for number, end in enumerate(wake, start=1) if key.endswith(end)), 0)
    return key != "signal", rank, key


def as_json(value: Any) -> Any:
    """The value as JSON gives it back, so that stored and new identities compare equal."""
    return json.loads(json.dumps(value, sort_keys=True, default=dict))


def hash_json(value: Any) -> str:
    """SHA-256 over a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(as_json(value), sort_keys=True).encode()).hexdigest()
