"""Tables, charts and pages over results: a module for each topic."""

__all__ = [
    "class_table",
    "labels",
    "markdown",
    "overview",
    "results",
    "table",
    "terminal",
    "write",
]
