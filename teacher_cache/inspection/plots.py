"""Pictures of a teacher store, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from logitbank.configs import ConfigError
from logitbank.teacher_cache.inspection.summary import LEAST_TAIL, Inspection


def require_matplotlib() -> None:
    """Raise `ConfigError` if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigError('--plot: needs matplotlib, which is not installed; pip install "logitbank[plots]"') from None


def draw(inspection: Inspection, directory: Path) -> list[Path]:
    """Write `entropy.png`, `top_k_mass.png` and `teacher_ce.png`; returns their paths.

    Raises:
        ConfigError: no matplotlib, or a directory that cannot be written.
    """
    require_matplotlib()
    pictures = {"entropy": _entropy, "top_k_mass": _mass, "teacher_ce": _cross_entropy}
    written = []
    for name, picture in pictures.items():
        written.append(_save(picture(inspection), directory / f"{name}.png"))
    return written


def _entropy(inspection: Inspection) -> Any:
    figure, axes = _figure("Entropy of the teacher per answer token")
    edges = np.array([0.0, 1.0])
    for view in inspection.views:
        edges, counts = inspection.entropies(view)
        axes.stairs(counts / max(1, counts.sum()), edges, label=view, fill=True, alpha=0.5)
    axes.set(xlim=(0, edges[-1]), xlabel="entropy (nats); the axis ends at log V", ylabel="share of answer tokens")
    axes.legend()
    return figure


def _mass(inspection: Inspection) -> Any:
    top_k = inspection.store.info.top_k
    figure, axes = _figure(f"Probability that the top {top_k} leave to other tokens")
    for view in inspection.views:
        edges, counts = inspection.tails(view)
        axes.stairs(counts / max(1, counts.sum()), edges, label=view, fill=True, alpha=0.5)
    axes.set(
        xscale="log",
        xlim=(LEAST_TAIL, 1),
        xlabel=f"1 − top-{top_k} mass per answer token; the first bar holds all below {LEAST_TAIL:g}",
        ylabel="share of answer tokens",
    )
    axes.legend()
    return figure


def _cross_entropy(inspection: Inspection) -> Any:
    figure, axes = _figure("Cross-entropy of the teacher on the gold answers")
    values = inspection.cross_entropies()
    tasks, views = list(values), inspection.views
    width = 0.8 / max(1, len(views))
    for number, view in enumerate(views):
        places = np.arange(len(tasks)) + (number - (len(views) - 1) / 2) * width
        heights = [values[task].get(view, float("nan")) for task in tasks]
        bars = axes.bar(places, heights, width, label=view)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(np.arange(len(tasks)), tasks)
    axes.set_ylabel("nats per answer token")
    axes.legend()
    return figure


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    temporary = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", dpi=120)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"--plot {path.parent}: cannot be written: {error.strerror or error}") from None
    return path
