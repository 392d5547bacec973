"""What stores share that are Zarr groups in objects: flat arrays, names, identities, verified reading, writing."""

from logitbank.storage.groups.checks import check_manifests, parts_to_verify
from logitbank.storage.groups.columns import Column
from logitbank.storage.groups.example_ids import ExampleIds, join_names
from logitbank.storage.groups.flat import (
    ChunkedReader,
    array_of,
    coder,
    create_flat_array,
    create_long_array,
    read_all,
    starts_of,
)
from logitbank.storage.groups.identity import SHORT_DIGITS, as_json, hash_json, refuse_difference
from logitbank.storage.groups.kinds import LABELS, TOKENS, open_root, read_root, require_kind, view_names
from logitbank.storage.groups.verified import VerifiedObjects
from logitbank.storage.groups.writing import put_objects, put_parts, require_view_name

__all__ = [
    "LABELS",
    "SHORT_DIGITS",
    "TOKENS",
    "ChunkedReader",
    "Column",
    "ExampleIds",
    "VerifiedObjects",
    "array_of",
    "as_json",
    "check_manifests",
    "coder",
    "create_flat_array",
    "create_long_array",
    "hash_json",
    "join_names",
    "open_root",
    "parts_to_verify",
    "put_objects",
    "put_parts",
    "read_all",
    "read_root",
    "refuse_difference",
    "require_kind",
    "require_view_name",
    "starts_of",
    "view_names",
]
