"""Teacher and label stores (Zarr); `storage.objects`: where bytes are stored; `storage.results`: rows (Parquet,
DuckDB).

Zarr is imported with the first name that needs it: reading result rows does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitbank.errors import CorruptStoreError, IncompleteStoreError, StoreError

if TYPE_CHECKING:
    from logitbank.storage.groups import Column, parts_to_verify
    from logitbank.storage.label_store import (
        LabelSpec,
        LabelStore,
        LabelStoreBuilder,
        LabelStoreInfo,
        PairTable,
        ScoredShard,
        Scorer,
        is_label_store,
        open_label_builder,
        verify_labels,
    )
    from logitbank.storage.teacher_store import (
        BOUNDABLE,
        LOG_MASS_FLOOR,
        MOST_DRAWS,
        SIGNALS,
        BuildSite,
        Encoding,
        ExampleColumns,
        ExampleRecord,
        ExampleTable,
        OtherTeacher,
        OwnSequences,
        PlannedExamples,
        ShardPlan,
        StoreBuilder,
        StoreInfo,
        StoreSpec,
        TeacherRows,
        TeacherStore,
        Tokens,
        ViewRead,
        Vocabulary,
        bytes_of_draws,
        concatenate,
        lay_out,
        log_tail_of,
        open_builder,
        open_site,
        open_store,
        plan_shards,
        planned_of,
        read_ahead,
        verify,
        write_planned,
    )

__all__ = [
    "BOUNDABLE",
    "LOG_MASS_FLOOR",
    "MOST_DRAWS",
    "SIGNALS",
    "BuildSite",
    "Column",
    "CorruptStoreError",
    "Encoding",
    "ExampleColumns",
    "ExampleRecord",
    "ExampleTable",
    "IncompleteStoreError",
    "LabelSpec",
    "LabelStore",
    "LabelStoreBuilder",
    "LabelStoreInfo",
    "OtherTeacher",
    "OwnSequences",
    "PairTable",
    "PlannedExamples",
    "ScoredShard",
    "Scorer",
    "ShardPlan",
    "StoreBuilder",
    "StoreError",
    "StoreInfo",
    "StoreSpec",
    "TeacherRows",
    "TeacherStore",
    "Tokens",
    "ViewRead",
    "Vocabulary",
    "bytes_of_draws",
    "concatenate",
    "is_label_store",
    "lay_out",
    "log_tail_of",
    "open_builder",
    "open_label_builder",
    "open_site",
    "open_store",
    "parts_to_verify",
    "plan_shards",
    "planned_of",
    "read_ahead",
    "verify",
    "verify_labels",
    "write_planned",
]

_ROOMS = {
    **dict.fromkeys(
        [
            "LabelSpec",
            "LabelStore",
            "LabelStoreBuilder",
            "LabelStoreInfo",
            "PairTable",
            "ScoredShard",
            "Scorer",
            "is_label_store",
            "open_label_builder",
            "verify_labels",
        ],
        "label_store",
    ),
    "Column": "groups",
    "parts_to_verify": "groups",
}


def __getattr__(name: str) -> Any:
    """A public name, from the room that has it."""
    if name not in __all__:
        raise AttributeError(f"module 'logitbank.storage' has no attribute {name!r}")
    room = _ROOMS.get(name, "teacher_store")
    return getattr(importlib.import_module(f"logitbank.storage.{room}"), name)
