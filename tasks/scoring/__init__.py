"""Reading and scoring answers."""

__all__ = [
    "classes",
    "likelihood",
]
