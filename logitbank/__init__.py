"""Run the teacher once; train every student from its cached logits.

    store = logitbank.open_store("runs/store")
    rows = store.read([0, 5], view="fewshot", top_k=64)
    data = logitbank.TeacherDataset(store, view="fewshot", top_k=64, shuffle_seed=0)
    collate = logitbank.DistillationCollator(pad_id=0)
    loss = logitbank.losses.forward_kl(student_logits, batch.teacher, temperature=2.0)

These names are stable: docs/python.md shows how they fit together. `import logitbank` itself costs nothing: each name
brings its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitbank import losses
    from logitbank.configs import Config, DistillationConfig, load_config
    from logitbank.errors import ConfigError, LogitbankError, StoreError, TaskError
    from logitbank.evaluation.sampling import sample_answers
    from logitbank.evaluation.stage import evaluate
    from logitbank.storage import ExampleRecord, TeacherStore, open_store
    from logitbank.storage.results import Catalogue
    from logitbank.student_train.collator import DistillationCollator
    from logitbank.student_train.dataset import TeacherDataset
    from logitbank.student_train.stage import train
    from logitbank.teacher_cache.stage import build
    from logitbank.teacher_cache.store_writer import StoreWriter

__version__ = "0.3.0"
__all__ = [
    "Catalogue",
    "Config",
    "ConfigError",
    "DistillationCollator",
    "DistillationConfig",
    "ExampleRecord",
    "LogitbankError",
    "StoreError",
    "StoreWriter",
    "TaskError",
    "TeacherDataset",
    "TeacherStore",
    "__version__",
    "build",
    "evaluate",
    "load_config",
    "losses",
    "open_store",
    "sample_answers",
    "train",
]

_ROOMS = {
    "Catalogue": "logitbank.storage.results",
    "Config": "logitbank.configs",
    "ConfigError": "logitbank.errors",
    "DistillationCollator": "logitbank.student_train.collator",
    "DistillationConfig": "logitbank.configs",
    "ExampleRecord": "logitbank.storage",
    "LogitbankError": "logitbank.errors",
    "StoreError": "logitbank.errors",
    "StoreWriter": "logitbank.teacher_cache.store_writer",
    "TaskError": "logitbank.errors",
    "TeacherDataset": "logitbank.student_train.dataset",
    "TeacherStore": "logitbank.storage",
    "build": "logitbank.teacher_cache.stage",
    "evaluate": "logitbank.evaluation.stage",
    "load_config": "logitbank.configs",
    "open_store": "logitbank.storage",
    "sample_answers": "logitbank.evaluation.sampling",
    "train": "logitbank.student_train.stage",
}
_MODULES = ("losses",)


def __getattr__(name: str) -> Any:
    """A public name, from its room; a public module."""
    if name in _MODULES:
        return importlib.import_module(f"logitbank.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module 'logitbank' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
