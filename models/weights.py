"""The hash that says which weights a model has."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import uuid
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

from logitbank.configs.schema import ConfigError, ModelConfig

WORTH_REMEMBERING = 16 << 20  # bytes; what is smaller is hashed in no time
DESCRIPTIONS = ("config.json", "adapter_config.json", "classifier.json")


def weights_hash(model: ModelConfig) -> str:
    """SHA-256 over the weight files and configuration of a model or adapter, names included.

    A model of the hub that is not on this machine yet is downloaded. Hashes of large files are remembered in the
    user's cache directory for as long as size, modification and change time of the file stay the same.

    Raises:
        ConfigError: no such model, or no weight files in it.
    """
    folder = _folder(model)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name in DESCRIPTIONS)
    if not any(path.suffix != ".json" for path in files):
        raise ConfigError(f"model.name: no weight files in {shlex.quote(str(folder))}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(_file_hash(path))
    return digest.hexdigest()


def adapted_weights_hash(base: str, adapter: str) -> str:
    """Short hash of a model with an adapter on top, from the `weights_hash` of each."""
    return hashlib.sha256(json.dumps([base, adapter]).encode()).hexdigest()[:10]


def _folder(model: ModelConfig) -> Path:
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        return folder
    with contextlib.suppress(LocalEntryNotFoundError):
        found = Path(huggingface_hub.snapshot_download(model.name, revision=model.revision, local_files_only=True))
        if _is_whole(found):
            return found
    try:
        names = huggingface_hub.list_repo_files(model.name, revision=model.revision)
        # some repositories hold the same weights in several formats: transformers loads the first of these
        suffix = ".safetensors" if any(name.endswith(".safetensors") for name in names) else ".bin"
        wanted = [name for name in names if "/" not in name and name.endswith((suffix, ".json", ".jinja", ".model"))]
        wanted = [name for name in wanted if not name.startswith("consolidated")]
        return Path(huggingface_hub.snapshot_download(model.name, revision=model.revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"model.name: {model.name} cannot be downloaded: {reason}") from error


def _is_whole(folder: Path) -> bool:
    """Whether a folder has weights, and every part of them that its index names."""
    suffix = ".safetensors" if any(folder.glob("*.safetensors*")) else ".bin"
    indexed: set[str] = set()
    for index in folder.glob(f"*{suffix}.index.json"):
        indexed |= set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    parts = {path.name for path in folder.glob(f"*{suffix}")}
    return bool(parts) and indexed <= parts


def _file_hash(path: Path) -> bytes:
    status = path.stat()
    if status.st_size < WORTH_REMEMBERING:
        return _read_hash(path)
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    remembered = _cache_directory() / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(remembered.read_text(encoding="utf-8"))
        if known["state"] == state:
            return bytes.fromhex(known["sha256"])
    found = _read_hash(path)
    temporary = remembered.with_suffix(f".{uuid.uuid4().hex}.partial")
    with contextlib.suppress(OSError):  # a home that cannot be written costs time, nothing else
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"file": str(path), "state": state, "sha256": found.hex()}), encoding="utf-8")
        temporary.replace(remembered)
    return found


def _read_hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "logitbank" / "weights"
