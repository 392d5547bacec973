"""Run the teacher once; train every student from its cached logits.

What a program needs beside the commands: the errors, a configuration, and the two readers.

    config = logitbank.load_config(["qwen3-1.7b"], ["training.max_steps=100"])
    store = logitbank.TeacherStore.open("runs/qwen/store")
    rows = logitbank.Catalogue([Path("runs/qwen/results")]).rows("SELECT * FROM cells")

`import logitbank` itself costs nothing: each name brings its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitbank.configs import Config, load_config
    from logitbank.errors import ConfigError, LogitbankError, StoreError, TaskError
    from logitbank.storage import TeacherStore
    from logitbank.storage.results import Catalogue

__version__ = "0.3.0"
__all__ = [
    "Catalogue",
    "Config",
    "ConfigError",
    "LogitbankError",
    "StoreError",
    "TaskError",
    "TeacherStore",
    "__version__",
    "load_config",
]

_ROOMS = {
    "Catalogue": "logitbank.storage.results",
    "Config": "logitbank.configs",
    "ConfigError": "logitbank.errors",
    "LogitbankError": "logitbank.errors",
    "StoreError": "logitbank.errors",
    "TaskError": "logitbank.errors",
    "TeacherStore": "logitbank.storage",
    "load_config": "logitbank.configs",
}


def __getattr__(name: str) -> Any:
    """A public name, from its room."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'logitbank' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
