"""What `build-teacher-cache` is asked to do with a label store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitbank.configs import Config, ConfigError
from logitbank.experiment import NO_VIEW, VIEWS

VIEW_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Request:
    """The options that are about a label store.

    Attributes:
        view: the teacher's name in the store; None for rows and folds only.
        folds: which to score, each once; empty where the teacher decides.
        checkpoint: the teacher, as training or export wrote it; None for the model of the configuration.
        logits: a glob of `.npy` files whose logits are imported; None to score.
    """

    view: str | None
    folds: tuple[int, ...] = ()
    checkpoint: Path | None = None
    logits: str | None = None


def read_request(
    config: Config,
    *,
    views: Sequence[str] | None,
    folds: Sequence[int] | None,
    checkpoint: Path | None,
    logits: str | None,
    split: str,
) -> Request:
    """Check the command's options, and the keys that scoring comparisons cannot honour.

    Raises:
        ConfigError: options that make no sense together, or a fold or key that does not fit.
    """
    view = _view(views)
    if split != "train":
        raise ConfigError(f"--split: a label store contains all splits; expected train, got {split}")
    given = {"--fold": folds, "--checkpoint": checkpoint, "--logits": logits}
    if view == NO_VIEW:
        for option, value in given.items():
            if value is not None:
                raise ConfigError(f"{option}: --view none writes only rows and folds; name the teacher: --view NAME")
        return Request(None)
    if checkpoint is not None and logits is not None:
        raise ConfigError("--logits: imports logits that a teacher computed; leave out --checkpoint")
    if checkpoint is not None and not checkpoint.is_dir():
        raise ConfigError(
            f"--checkpoint: no directory {checkpoint}; expected one that train-student or export-model wrote"
        )
    for fold in folds or ():
        if not 0 <= fold < config.preference.folds:
            raise ConfigError(f"--fold: expected 0 to {config.preference.folds - 1} (preference.folds), got {fold}")
    if logits is None:
        _check_keys(config)
    return Request(view, tuple(dict.fromkeys(folds or ())), checkpoint, logits)


def _view(views: Sequence[str] | None) -> str:
    named = f"{NO_VIEW} (rows and folds alone) or the name of a teacher"
    if not views or len(views) > 1:
        raise ConfigError(
            f"--view: expected {named}, got {', '.join(views or ['nothing'])}; a command builds the view of one teacher"
        )
    (view,) = views
    if view in VIEWS:
        raise ConfigError(f"--view: {view} is a kind of prompt, which does not apply to comparisons; expected {named}")
    if not VIEW_NAME.fullmatch(view):
        raise ConfigError(
            f"--view: expected lower-case letters, digits and underscores, starting with a letter, got {view!r}"
        )
    return view


def _check_keys(config: Config) -> None:
    if config.teacher.engine != "hf":
        raise ConfigError(f"teacher.engine: expected hf for comparisons, got {config.teacher.engine}")
    if config.teacher.device_map is not None:
        raise ConfigError(
            "teacher.device_map: expected null for comparisons, which are scored on one device, got "
            f"{config.teacher.device_map}"
        )
