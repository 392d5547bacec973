"""The hash that says which weights a teacher had."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub

from logitbank.configs.schema import ConfigError, ModelConfig


def weights_hash(model: ModelConfig) -> str:
    """SHA-256 over the model's weight files and configuration, names included.

    Raises:
        ConfigError: no weight files where the model was loaded from.
    """
    folder = Path(model.name).expanduser()
    if not folder.is_dir():
        folder = Path(huggingface_hub.snapshot_download(model.name, revision=model.revision, local_files_only=True))
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json")
    if not any(path.suffix != ".json" for path in files):
        raise ConfigError(f"model.name: no weight files in {folder}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
