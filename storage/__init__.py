"""The teacher store (Zarr) and the results (Parquet, DuckDB). Imports no sibling package."""

from storage.errors import CorruptStoreError, IncompleteStoreError, StoreError
from storage.examples import ExampleRecord, ExampleTable
from storage.reader import StoreInfo, TeacherStore
from storage.rows import TeacherRows
from storage.vocabulary import Vocabulary
from storage.writer import StoreBuilder, StoreSpec, open_builder

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
