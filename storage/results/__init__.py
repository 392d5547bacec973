"""Result rows: immutable Parquet files, and DuckDB views over them."""

from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.label_rows import LABEL_SCHEMA
from logitbank.storage.results.memory import parse_memory
from logitbank.storage.results.rows import SCHEMA_VERSION, SCHEMAS, names_of, read_rows, withdraw_rows, write_rows
from logitbank.storage.results.store_rows import TOKEN_SCHEMA, token_batches
from logitbank.storage.results.views import SERIES, VIEWS

__all__ = [
    "LABEL_SCHEMA",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "SERIES",
    "TOKEN_SCHEMA",
    "VIEWS",
    "Catalogue",
    "names_of",
    "parse_memory",
    "read_rows",
    "token_batches",
    "withdraw_rows",
    "write_rows",
]
