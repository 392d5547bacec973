"""Teacher stores (Zarr); `storage.objects`: where their bytes lie; `storage.results`: rows (Parquet, DuckDB)."""

from logitbank.errors import CorruptStoreError, IncompleteStoreError, StoreError
from logitbank.storage.teacher_store import (
    LOG_MASS_FLOOR,
    MOST_DRAWS,
    SIGNALS,
    Encoding,
    ExampleRecord,
    ExampleTable,
    StoreBuilder,
    StoreInfo,
    StoreSpec,
    TeacherRows,
    TeacherStore,
    Vocabulary,
    bytes_of_draws,
    concatenate,
    open_builder,
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
    "StoreBuilder",
    "StoreError",
    "StoreInfo",
    "StoreSpec",
    "TeacherRows",
    "TeacherStore",
    "Vocabulary",
    "bytes_of_draws",
    "concatenate",
    "open_builder",
    "verify",
]
