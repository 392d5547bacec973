"""Trainers of other libraries that learn from a store: `transformers`, `trl`. Each module brings its own library."""

__all__ = [
    "joining",
    "transformers",
    "trl",
]
