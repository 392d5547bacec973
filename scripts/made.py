"""Folders that a script makes once: what is there is kept, and what other settings made is made anew."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def is_made(folder: Path, settings: Any) -> bool:
    """Whether the folder was made by these settings, a dataclass; what was made otherwise or in part is removed."""
    record = folder / "made-by.json"
    if record.exists() and record.read_text(encoding="utf-8") == _text(settings):
        logger.info("%s: is there already", folder)
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def mark_made(folder: Path, settings: Any) -> None:
    """Say, once the folder is complete, which settings made it."""
    temporary = folder / "made-by.tmp"
    temporary.write_text(_text(settings), encoding="utf-8")
    temporary.rename(folder / "made-by.json")


def _text(settings: Any) -> str:
    return json.dumps(dataclasses.asdict(settings))
