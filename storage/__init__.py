"""The teacher store (Zarr) and the results (Parquet, DuckDB). Imports no sibling package."""

from logitbank.errors import CorruptStoreError, IncompleteStoreError, StoreError
from logitbank.storage.teacher_store.examples import ExampleRecord, ExampleTable
from logitbank.storage.teacher_store.reader import StoreInfo, TeacherStore
from logitbank.storage.teacher_store.rows import TeacherRows
from logitbank.storage.teacher_store.vocabulary import Vocabulary
from logitbank.storage.teacher_store.writer import StoreBuilder, StoreSpec, open_builder

__all__ = [
    "CorruptStoreError",
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
    "open_builder",
]
