"""YAML files and `key=value` overrides, merged left to right onto the typed schema."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from logitbank.configs.keys import config_keys
from logitbank.configs.schema import Config, ConfigError
from logitbank.configs.validate import validate
from logitbank.registry import TASKS
from logitbank.tasks import LANGUAGES, TaskError
from logitbank.tasks.outside import languages_of, open_tasks

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
SHIPPED = Path(__file__).parent
# What null is for every task but `preference`: its teachers need all rows, and so does a submission.
TRAIN_LIMIT, TEST_LIMIT = 5000, 500


_Layer = str | os.PathLike[str] | Mapping[str, Any]
ConfigSource = Config | _Layer | Sequence[_Layer]


def config_of(source: ConfigSource, *, any_task: bool = False) -> Config:
    """The configuration that a program means.

    Args:
        source: a `Config`, as it is; a YAML file or the name of a shipped one; a mapping of keys, nested or dotted; or
            a list of these and of `key=value` overrides, merged left to right, overrides last.
        any_task: see `load_config`.

    Raises:
        ConfigError, TaskError: see `load_config`.
    """
    if isinstance(source, Config):
        return source
    given = [source] if isinstance(source, str | os.PathLike | Mapping) else list(source)
    overrides = [item for item in given if isinstance(item, str) and OVERRIDE.match(item)]
    files = [item if isinstance(item, Mapping) else os.fspath(item) for item in given if item not in overrides]
    return load_config(files, overrides, any_task=any_task)


def load_config(
    files: Sequence[str | Mapping[str, Any]], overrides: Sequence[str] = (), *, any_task: bool = False
) -> Config:
    """Merge the schema's defaults, the files (left to right) and the overrides into a `Config`.

    Tasks that are named by file or module are opened; `tasks` has their names.

    Args:
        files: paths of YAML files, or names of shipped ones (`qwen3-1.7b`, `demo`); or what such a file would hold.
        overrides: `dotted.key=value` strings, values in YAML syntax.
        any_task: whether a name in `tasks` may be unknown here, because a store lists its tasks.

    Raises:
        ConfigError: a file that is missing or not a mapping, an unknown key (with the nearest known
            one), a value of the wrong type or outside its range, a required key that is not given.
        TaskError: a task that cannot be opened.
    """
    merged = OmegaConf.structured(Config)
    given: set[str] = set()
    length = ""  # the key that decides how long a run is
    for layer in [*map(_read_file, files), *map(_read_override, overrides)]:
        _take_one_name_for_a_list(layer)
        values = cast(dict[str, Any], OmegaConf.to_container(layer))
        given |= values.keys()
        if (key := _misshapen(values, Config())) is not None:
            raise ConfigError(_wrong_type_message(key, values))
        try:
            merged = OmegaConf.unsafe_merge(merged, layer)  # copies neither; a merge that fails ends here
        except ConfigKeyError as error:
            raise ConfigError(_unknown_key_message(str(error.full_key or error.key))) from None
        except OmegaConfBaseException as error:
            raise ConfigError(_wrong_type_message(str(error.full_key), values)) from None
        length = _length_given(values) or length
    try:
        config = cast(Config, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: required, but not given; add {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.msg).splitlines()[0]) from None
    if length == "max_steps":
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=None))
    config = _with_tasks(config, languages_given="languages" in given, any_task=any_task)
    if not config.is_preference:
        config = _with_limits(config)
    validate(config, any_task=any_task)
    return config


def _with_limits(config: Config) -> Config:
    """The configuration with numbers of examples that are null as the numbers that this stands for."""
    data, evaluation = config.data, config.evaluation
    if data.max_train_per_task is None:
        data = dataclasses.replace(data, max_train_per_task=TRAIN_LIMIT)
    if evaluation.max_samples is None:
        evaluation = dataclasses.replace(evaluation, max_samples=TEST_LIMIT)
    return dataclasses.replace(config, data=data, evaluation=evaluation)


def config_to_dict(config: Config) -> dict[str, Any]:
    """A plain nested dict of the configuration, for attributes and result rows."""
    return dataclasses.asdict(config)


def shipped_configs() -> list[str]:
    """Names of the YAML files that ship with the package, usable as `--config NAME`."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _with_tasks(config: Config, *, languages_given: bool, any_task: bool) -> Config:
    """The configuration with the names of its tasks, and their languages where it asks for none."""
    try:
        names = open_tasks(config.tasks)
    except TaskError as error:
        instead = "; or name the task as the store does, for training needs no more: tasks=[NAME]" if any_task else ""
        raise TaskError(f"{error}{instead}") from error
    own = languages_of(names)
    if languages_given or not own:
        return dataclasses.replace(config, tasks=names)
    study = LANGUAGES if any(name in TASKS.shipped for name in names) else ()
    return dataclasses.replace(config, tasks=names, languages=list(dict.fromkeys([*study, *own])))


def _read_file(name: str | Mapping[str, Any]) -> Any:
    if isinstance(name, Mapping):
        return _of_mapping(name)
    path = Path(name)
    if not path.exists() and (SHIPPED / f"{name}.yaml").exists():
        path = SHIPPED / f"{name}.yaml"
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--config: no file {shlex.quote(name)}, and no shipped configuration of that name "
            f"(shipped: {', '.join(shipped_configs())})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {shlex.quote(name)}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {shlex.quote(name)}: not valid YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        loaded = {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {shlex.quote(name)}: expected a mapping of keys, got {type(loaded).__name__}")
    return OmegaConf.create(loaded)


def _of_mapping(keys: Mapping[str, Any]) -> Any:
    """A mapping as a layer; `{"training.max_steps": 5}` means `{"training": {"max_steps": 5}}`."""
    layer = OmegaConf.create({})
    try:
        for key, value in keys.items():
            OmegaConf.update(layer, str(key), value)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"config: expected a mapping of keys: {' '.join(str(error).split())}") from None
    return layer


def _read_override(text: str) -> Any:
    key, separator, _ = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {text!r}: expected key=value")
    try:
        return OmegaConf.from_dotlist([text])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"override {text!r}: {' '.join(str(error).split())}") from None


def _take_one_name_for_a_list(layer: Any) -> None:
    """`lora.target_modules=all-linear`, as PEFT spells it, is the list of that one name."""
    if isinstance(OmegaConf.select(layer, "lora.target_modules"), str):
        layer.lora.target_modules = [layer.lora.target_modules]


def _length_given(values: Mapping[str, Any]) -> str | None:
    """Which of `training.max_steps` and `training.epochs` a layer gives; the last layer that gives one decides."""
    training = values.get("training")
    given = [name for name in ("max_steps", "epochs") if isinstance(training, dict) and training.get(name) is not None]
    if len(given) > 1:
        raise ConfigError("training.epochs: expected either this or training.max_steps, got both")
    return given[0] if given else None


def _misshapen(values: Mapping[Any, Any], defaults: Any, prefix: str = "") -> str | None:
    """The first key whose value OmegaConf has no message for: no group, or a list in a mapping's place."""
    for name, value in values.items():
        key, default = f"{prefix}{name}", getattr(defaults, str(name), value)
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            if (found := _misshapen(value, default, f"{key}.")) is not None:
                return found
        elif dataclasses.is_dataclass(default) or (
            isinstance(value, dict | list) and not isinstance(default, type(value))
        ):
            return key
    return None


def _wrong_type_message(key: str, values: Any) -> str:
    """What the value of a key, or what an item of that value is in, should have been: the schema in words."""
    kind: Any = Config
    names = []
    for name in key.split("."):
        kind, values = get_type_hints(kind)[name], values[name]
        names.append(name)
        if not (dataclasses.is_dataclass(kind) and isinstance(values, dict)):
            break
    hint = f"; write {'.'.join(names)}=[{values}]" if get_origin(kind) is list and isinstance(values, str) else ""
    return f"{'.'.join(names)}: expected {_in_words(kind)}, got {values!r}{hint}"


def _in_words(kind: Any) -> str:
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    if kind in plain:
        return plain[kind]
    if dataclasses.is_dataclass(kind):
        return "a group of keys"
    inner = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is dict:
        return f"a mapping such as {{nli: VALUE}} (a space after each colon), every value {_in_words(inner[1])}"
    if get_origin(kind) is list:
        return f"a list such as [A, B], every item {_in_words(inner[0])}"
    return f"{_in_words(inner[0])} or null"  # an optional one


def _unknown_key_message(key: str) -> str:
    known = config_keys()
    group, dot, leaf = key.rpartition(".")
    beside = [name for name in known if name.startswith(group + dot)]
    near = difflib.get_close_matches(leaf, [name[len(group + dot) :] for name in beside], n=1, cutoff=0.5)
    near = [group + dot + name for name in near if group] or [
        # a right name in the wrong group: `lambda_distill` for `distillation.lambda_distill`
        *(name for name in known if name.split(".")[-1] == leaf),
        *difflib.get_close_matches(key, [*known, *{name.split(".")[0] for name in known}], n=1, cutoff=0.5),
    ]
    hint = f"; did you mean {near[0]}?" if near else "; docs/configuration.md lists every key"
    return f"{key}: unknown configuration key{hint}"
