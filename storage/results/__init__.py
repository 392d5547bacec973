"""Result rows: immutable Parquet files, and DuckDB views over them."""

from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS, read_rows, write_rows
from logitbank.storage.results.views import VIEWS

__all__ = [
    "SCHEMAS",
    "SCHEMA_VERSION",
    "VIEWS",
    "Catalogue",
    "read_rows",
    "write_rows",
]
