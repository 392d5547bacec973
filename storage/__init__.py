"""Teacher stores (Zarr); `storage.objects`: where their bytes lie; `storage.results`: rows (Parquet, DuckDB).

Zarr is imported with the first name that needs it: reading result rows does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitbank.errors import CorruptStoreError, IncompleteStoreError, StoreError

if TYPE_CHECKING:
    from logitbank.storage.teacher_store import (
        LOG_MASS_FLOOR,
        MOST_DRAWS,
        SIGNALS,
        Encoding,
        ExampleRecord,
        ExampleTable,
        OtherTeacher,
        OwnSequences,
        StoreBuilder,
        StoreInfo,
        StoreSpec,
        TeacherRows,
        TeacherStore,
        Tokens,
        Vocabulary,
        bytes_of_draws,
        concatenate,
        open_builder,
        parts_to_verify,
        verify,
    )

__all__ = [
    "LOG_MASS_FLOOR",
    "MOST_DRAWS",
    "SIGNALS",
    "CorruptStoreError",
    "Encoding",
    "ExampleRecord",
    "ExampleTable",
    "IncompleteStoreError",
    "OtherTeacher",
    "OwnSequences",
    "StoreBuilder",
    "StoreError",
    "StoreInfo",
    "StoreSpec",
    "TeacherRows",
    "TeacherStore",
    "Tokens",
    "Vocabulary",
    "bytes_of_draws",
    "concatenate",
    "open_builder",
    "parts_to_verify",
    "verify",
]


def __getattr__(name: str) -> Any:
    """A public name, from the teacher store."""
    if name not in __all__:
        raise AttributeError(f"module 'logitbank.storage' has no attribute {name!r}")
    return getattr(importlib.import_module("logitbank.storage.teacher_store"), name)
