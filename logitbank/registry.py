"""Everything that can be chosen by name: tasks, encodings, losses, λ strategies, engines.

Each registry maps names to `module:attribute`, imported when it is asked for: names are known without
importing torch. Adding a choice is one file and one line here, or a `register` call from outside the package;
tasks also come from installed packages, by their entry points. Validation, help and documentation take their lists
from here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar

from logitbank.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names and what they stand for.

    Attributes:
        key: the configuration key or option whose values these names are, for messages.
        shipped: the names that the package itself brings.
    """

    def __init__(
        self, key: str, targets: Mapping[str, str], *, group: str | None = None, opener: str | None = None
    ) -> None:
        """Names of the package itself, and of those that are installed beside it.

        Args:
            key: see above.
            targets: names and what they stand for, each `module:attribute`.
            group: entry point group in which other packages name choices of theirs.
            opener: `module:function` that makes the choice of a name and its entry point.
        """
        self.key = key
        self.shipped = tuple(targets)
        self._targets: dict[str, str | T] = dict(targets)
        self._group = group
        self._opener = opener

    def register(self, name: str, target: str | T) -> None:
        """Add a choice.

        Args:
            name: as configurations will spell it.
            target: what it stands for, or `module:attribute` to be imported on first use.

        Raises:
            ConfigError: the name is taken.
        """
        if (name in self._targets and self._targets[name] != target) or name in self._installed:
            raise ConfigError(f"{self.key}: {name} is already registered; choose another name")
        self._targets[name] = target

    def unregister(self, name: str) -> None:
        """Take a choice away again."""
        del self._targets[name]

    def __getitem__(self, name: str) -> T:
        """What a name stands for; KeyError if it is unknown.

        Raises:
            ConfigError: an installed package gives the name too.
        """
        target = self._targets.get(name)
        if target is not None and not isinstance(target, str):
            return target
        found = self._installed.get(name, [])
        if len(found) + (target is not None) > 1:
            places = [*([] if target is None else ["logitbank"]), *map(package_of, found)]
            raise ConfigError(f"{self.key}: {name} is a name in {' and in '.join(places)}; uninstall one of them")
        if target is None:
            if not found:
                raise KeyError(name)
            assert self._opener is not None  # a registry with a group has one
            opened: T = _import(self._opener)(name, found[0])
        else:
            opened = _import(target)
        self._targets[name] = opened
        return opened

    def __iter__(self) -> Iterator[str]:
        return iter({**self._targets, **self._installed})

    def __len__(self) -> int:
        return len(self._targets.keys() | self._installed.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._targets or name in self._installed

    @functools.cached_property
    def _installed(self) -> dict[str, list[metadata.EntryPoint]]:
        """Entry points of installed packages, by name; looks at their metadata and imports none of them."""
        found: dict[str, list[metadata.EntryPoint]] = {}
        for point in metadata.entry_points(group=self._group) if self._group is not None else ():
            found.setdefault(point.name, []).append(point)
        return found


def package_of(point: metadata.EntryPoint) -> str:
    """The installed package that an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.value


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


# -> a `Task` of `tasks.common`; those that a configuration names by file or module join while a command runs
TASKS: Registry[Any] = Registry(
    "tasks",
    {
        "gsm8k": "logitbank.tasks.gsm8k:TASK",
        "nli": "logitbank.tasks.nli:TASK",
        "pa": "logitbank.tasks.pa:TASK",
        "qa": "logitbank.tasks.qa:TASK",
        "ner": "logitbank.tasks.ner:TASK",
        "pos": "logitbank.tasks.pos:TASK",
        "chat": "logitbank.tasks.chat:TASK",
        "preference": "logitbank.tasks.preference.task:TASK",
    },
    group="logitbank.tasks",
    opener="logitbank.tasks.outside:open_installed",
)
# -> an `Encoding` of `storage`
ENCODINGS: Registry[Any] = Registry(
    "store.encoding",
    {
        "compact": "logitbank.storage.teacher_store.encodings.compact:COMPACT",
        "float16": "logitbank.storage.teacher_store.encodings.plain:FLOAT16",
        "exact": "logitbank.storage.teacher_store.encodings.plain:EXACT",
    },
)
# -> a `TeacherOpener` of `teacher_cache.engines.base`
TEACHER_ENGINES: Registry[Any] = Registry(
    "teacher.engine",
    {
        "hf": "logitbank.teacher_cache.engines.huggingface:HFTeacher",
        "vllm": "logitbank.teacher_cache.engines.vllm:VllmTeacher",
    },
)
# -> a class derived from `student_train.losses.base.Loss`
LOSSES: Registry[Any] = Registry(
    "distillation.loss",
    {
        "mse": "logitbank.student_train.losses.mse:Mse",
        "forward_kl": "logitbank.student_train.losses.forward_kl:ForwardKl",
        "reverse_kl": "logitbank.student_train.losses.reverse_kl:ReverseKl",
        "jsd": "logitbank.student_train.losses.jsd:Jsd",
        "tvd": "logitbank.student_train.losses.tvd:Tvd",
    },
)
# -> a class derived from `student_train.strategies.base.Strategy`
STRATEGIES: Registry[Any] = Registry(
    "distillation.strategy",
    {
        "fixed": "logitbank.student_train.strategies.fixed:Fixed",
        "per_task": "logitbank.student_train.strategies.per_task:PerTask",
        "entropy": "logitbank.student_train.strategies.entropy:Entropy",
        "gradient_conflict": "logitbank.student_train.strategies.gradient_conflict:GradientConflict",
        "loss_ratio": "logitbank.student_train.strategies.loss_ratio:LossRatio",
        "meta": "logitbank.student_train.strategies.meta:Meta",
    },
)
# -> an `EngineOpener` of `evaluation.engines.base`
EVALUATION_ENGINES: Registry[Any] = Registry(
    "evaluation.engine",
    {
        "hf": "logitbank.evaluation.engines.huggingface:open_hf",
        "vllm": "logitbank.evaluation.engines.vllm:open_vllm_engine",
    },
)
# -> a `Layout` of `teacher_cache.exchange.layouts`: rows of other toolkits, as `logitbank import` reads them
IMPORT_LAYOUTS: Registry[Any] = Registry(
    "--format",
    {
        "plain": "logitbank.teacher_cache.exchange.plain:LAYOUT",
        "axolotl": "logitbank.teacher_cache.exchange.axolotl:LAYOUT",
        "distillkit": "logitbank.teacher_cache.exchange.distillkit:LAYOUT",
    },
)
# -> an `ExportLayout` of `teacher_cache.exchange.export_layouts`: rows as `logitbank export` writes them
EXPORT_LAYOUTS: Registry[Any] = Registry(
    "--format",
    {
        "plain": "logitbank.teacher_cache.exchange.export_layouts:PLAIN",
        "axolotl": "logitbank.teacher_cache.exchange.export_layouts:AXOLOTL",
    },
)
