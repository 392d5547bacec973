"""Typed configuration: schema, loader, shipped YAML files, and what all commands share."""

from configs.loader import config_keys, config_to_dict, load_config, shipped_configs
from configs.schema import Config, ConfigError

__all__ = ["Config", "ConfigError", "config_keys", "config_to_dict", "load_config", "shipped_configs"]
