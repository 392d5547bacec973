"""The keys of the schema by their dotted names, and what each of them decides."""

from __future__ import annotations

import dataclasses

from logitbank.configs.schema import Config, Decides

# These decide students and scores of comparisons alone; what others read at once, their store decides.
OF_COMPARISONS = frozenset(
    {
        *("model.head", "model.pooling", "data.max_student_tokens", "data.keep_turns", "data.swap"),
        *("distillation.alpha", "distillation.mse_weight", "distillation.view_weights"),
        *("training.label_smoothing", "training.eval_steps", "training.patience"),
        *("evaluation.tta_tokens", "evaluation.swap_average", "evaluation.load_in_8bit"),
    }
)


def config_keys() -> list[str]:
    """Every dotted key of the schema, in declaration order."""
    return list(_decisions())


def decides(key: str) -> Decides:
    """What a dotted key decides; KeyError for an unknown one."""
    return _decisions()[key]


def keys_deciding(what: Decides, *, comparisons: bool) -> list[str]:
    """The dotted keys that decide any of what is asked for.

    Args:
        what: a student, its scores, or both.
        comparisons: whether these are a student and scores of comparisons.
    """
    decisions = _decisions().items()
    return [key for key, decided in decisions if decided & what and (comparisons or key not in OF_COMPARISONS)]


def value_of(config: Config, key: str) -> object:
    """The value that a configuration has for a dotted key."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _decisions(config_type: type = Config, prefix: str = "") -> dict[str, Decides]:
    found: dict[str, Decides] = {}
    defaults = config_type()
    for item in dataclasses.fields(config_type):
        value = getattr(defaults, item.name)
        if dataclasses.is_dataclass(value):
            found |= _decisions(type(value), f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = item.metadata["decides"]
    return found
