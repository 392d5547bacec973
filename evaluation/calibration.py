"""One temperature for a checkpoint's probabilities: fitted on the calibration rows, kept beside the weights.

It divides the log of the averaged probabilities, once: softmax(log p̄ / T) (Guo et al., 2017, arXiv:1706.04599).
What is submitted is what it was fitted on, so it holds for these weights, lengths and orders alone.

Shape letters: N comparisons, C classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import ConfigError
from logitbank.errors import OutputError
from logitbank.tasks.scoring.classes import class_metrics, class_statistics

CALIBRATION = "calibration.json"  # beside a checkpoint's weights
LOWEST, HIGHEST = 0.05, 20.0  # of temperatures
_ROUNDING = 1e-12  # nats; where nothing depends on the temperature, likelihoods differ by less
_REMEDY = "fit it again with --calibrate, or add --no-calibration"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """What decides the probabilities that a temperature is fitted on.

    Attributes:
        weights: hash of all weights, an adapter's base included.
        tokens: lengths at which comparisons are packed, each averaged over.
        swap_average: whether both orders of the answers are averaged.
        load_in_8bit: whether linear layers are quantised as the model is opened.
    """

    weights: str
    tokens: tuple[int, ...]
    swap_average: bool
    load_in_8bit: bool


@dataclass(frozen=True)
class FittedOn:
    """Where the comparisons come from that a temperature is fitted on, and who scored them.

    Attributes:
        split: `validation`, whose calibration and holdout parts they are, or `held_out`, folds that are halved.
        store: fingerprint of the label store that has the folds; None for validation.
        folds: their numbers; none for validation.
        scored_by: hashes of all weights of the students that scored the folds, if not of the weights themselves.
    """

    split: str = "validation"
    store: str | None = None
    folds: tuple[int, ...] = ()
    scored_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """How good the probabilities of some comparisons are, before and after.

    Attributes:
        rows: how many comparisons.
        examples_hash: of their ids, texts and labels.
        before: `nll` (nats, the quantity that is minimised), `log_loss` (the same of clipped probabilities) and `ece`,
            at temperature 1.
        after: the same at the temperature fitted.
    """

    rows: int
    examples_hash: str
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class Calibration:
    """A temperature, what it holds for and what it does.

    Attributes:
        temperature: by which log probabilities are divided.
        holds_for: what it was fitted with.
        calibration: the comparisons that it was fitted on.
        holdout: comparisons that it never saw.
        fitted_on: where both come from.
    """

    temperature: float
    holds_for: Protocol
    calibration: Part
    holdout: Part
    fitted_on: FittedOn = FittedOn()

    @classmethod
    def read(cls, directory: Path) -> Calibration | None:
        """The calibration beside a checkpoint's weights; None if there is none.

        Raises:
            ConfigError: a file that cannot be read.
        """
        path = directory / CALIBRATION
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = cls(
                float(content["temperature"]),
                Protocol(**_with_tuples(content["holds_for"])),
                Part(**content["calibration"]),
                Part(**content["holdout"]),
                FittedOn(**_with_tuples(content.get("fitted_on", {}))),  # earlier versions knew validation alone
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{_quoted(path)}: cannot be read ({_line(error)}); {_REMEDY}") from None
        if not (math.isfinite(found.temperature) and found.temperature > 0):
            raise ConfigError(f"{_quoted(path)}: expected a temperature above 0, got {found.temperature:g}; {_REMEDY}")
        return found

    def write(self, directory: Path) -> Path:
        """Write `calibration.json`, whole or not at all; one that is there is replaced.

        Raises:
            OutputError: the directory cannot be written.
        """
        path = directory / CALIBRATION
        temporary = path.with_name(f".{CALIBRATION}.{uuid.uuid4().hex}.partial")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(dataclasses.asdict(self), file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise _unwritable(path, error) from None
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def require(self, directory: Path, protocol: Protocol) -> None:
        """Refuse to apply it to anything else than what it was fitted with.

        Raises:
            ConfigError: says what differs.
        """
        for name, key in (
            ("weights", "weights"),
            ("tokens", "evaluation.tta_tokens"),
            ("swap_average", "evaluation.swap_average"),
            ("load_in_8bit", "evaluation.load_in_8bit"),
        ):
            fitted, asked = getattr(self.holds_for, name), getattr(protocol, name)
            if fitted != asked:
                raise ConfigError(
                    f"{_quoted(directory / CALIBRATION)}: was fitted with {key} {_shown(fitted)}, but this evaluation "
                    "uses "
                    f"{_shown(asked)}; {_REMEDY}"
                )

    @property
    def is_bound(self) -> bool:
        """Whether the temperature is an end of the range that it may be in."""
        return any(math.isclose(self.temperature, end, rel_tol=1e-4) for end in (LOWEST, HIGHEST))

    @property
    def harms_holdout(self) -> bool:
        """Whether comparisons that it never saw have a higher log loss with it."""
        return self.holdout.after["log_loss"] > self.holdout.before["log_loss"] + _ROUNDING

    def line(self) -> str:
        """What it does, to read."""
        both = zip((self.calibration, self.holdout), ("fitted", "held-out"), strict=True)
        told = (
            f"{part.rows:,} {kind} rows: log loss {part.before['log_loss']:.4f} to {part.after['log_loss']:.4f}, "
            f"ece {100 * part.before['ece']:.1f} to {100 * part.after['ece']:.1f}"
            for part, kind in both
        )
        folds = ", ".join(map(str, self.fitted_on.folds))
        where = f" of fold {folds}" if folds else ""
        return f"T={self.temperature:.4g}{where}; {'; '.join(told)}"


def require_writable(directory: Path) -> None:
    """Find out before hours of scoring whether `calibration.json` can be written.

    Raises:
        OutputError: it cannot.
    """
    path = directory / CALIBRATION
    probe = path.with_name(f".{CALIBRATION}.{uuid.uuid4().hex}.partial")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None


def fit_temperature(log_p_NC: Floats, targets_NC: Floats) -> float:
    """The temperature of least negative log-likelihood, between `LOWEST` and `HIGHEST`; 1 if none is better.

    The likelihood is log-concave in 1/T, so there is one optimum, and a bounded search over log T finds it.

    Args:
        log_p_NC: log of the averaged probabilities.
        targets_NC: the share of each class in what people said.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(tempered(log_p_NC, math.exp(log_t)), targets_NC),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    gain = negative_log_likelihood(log_p_NC, targets_NC) - found.fun
    return math.exp(found.x) if gain > _ROUNDING else 1.0


def tempered(log_p_NC: Floats, temperature: float) -> Floats:
    """(N,C) float64, log softmax(log p / T)."""
    scaled_NC = log_p_NC / temperature
    return np.asarray(scaled_NC - np.logaddexp.reduce(scaled_NC, axis=1, keepdims=True))


def negative_log_likelihood(log_p_NC: Floats, targets_NC: Floats) -> float:
    """Mean over comparisons of −Σ t·log p, in nats."""
    return float(-(targets_NC * log_p_NC).sum(axis=1).mean())


def measure(log_p_NC: Floats, targets_NC: Floats, temperature: float, examples_hash: str) -> Part:
    """How good probabilities are at temperature 1 and at another."""
    before, after = (_figures(tempered(log_p_NC, at), targets_NC) for at in (1.0, temperature))
    return Part(len(log_p_NC), examples_hash, before, after)


def _figures(log_p_NC: Floats, targets_NC: Floats) -> dict[str, float]:
    statistics = class_statistics(np.exp(log_p_NC), targets_NC)
    found = class_metrics({name: float(values.mean()) for name, values in statistics.items()})
    return {
        "nll": negative_log_likelihood(log_p_NC, targets_NC),
        **{name: float(found[name]) for name in ("log_loss", "ece")},
    }


def _with_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"--calibrate: cannot write {_quoted(path)}: {error.strerror or error}; copy the checkpoint to a place that "
        "can be written"
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value[:12]
    return json.dumps(value)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
