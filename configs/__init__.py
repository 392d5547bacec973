"""Typed configuration: schema, loader and shipped YAML files."""

from logitbank.configs.data import data_settings
from logitbank.configs.keys import config_keys, decides, keys_deciding, value_of
from logitbank.configs.loader import ConfigSource, config_of, config_to_dict, load_config, shipped_configs
from logitbank.configs.schema import Config, Decides, DistillationConfig
from logitbank.errors import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "ConfigSource",
    "Decides",
    "DistillationConfig",
    "arguments",
    "config_keys",
    "config_of",
    "config_to_dict",
    "data_settings",
    "decides",
    "keys_deciding",
    "load_config",
    "schema",
    "shipped_configs",
    "training_data",
    "value_of",
]
