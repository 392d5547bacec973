"""A report of everything there is: Markdown with plots beside it, and one self-contained HTML page."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.errors import ConfigError, OutputError, StoreError
from logitbank.evaluation.report.charts import Chart, all_charts
from logitbank.evaluation.report.example_browser import browsed_examples
from logitbank.evaluation.report.markdown import markdown_section
from logitbank.evaluation.report.page import html_page
from logitbank.evaluation.report.reliability import reliability_charts
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.standing import standing_tables
from logitbank.evaluation.report.summary import INTERVAL_NOTE, summary_lines
from logitbank.evaluation.report.table import Table
from logitbank.storage.results import Catalogue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a report shows, in either form."""

    facts: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Chart]
    examples: Sequence[dict[str, Any]]


def write_report(catalogue: Catalogue, output: Path) -> list[Path]:
    """Write `output` (Markdown), its pictures in a folder beside it, and the same as one HTML page.

    Returns:
        The files written, pictures first, each whole.

    Raises:
        ConfigError: a name that is not one of a Markdown file.
        StoreError: no metric rows.
        OutputError: a place that cannot be written.
    """
    if output.suffix.lower() not in (".md", ".markdown"):
        raise ConfigError(f"--output: expected a name that ends in .md (the HTML page goes beside it), got {output}")
    report = collect(catalogue)
    folder = output.with_name(f"{output.stem}_plots")
    pictures = _pictures(report.charts)
    files = {folder / name: content for name, content in pictures.items()}
    files[output] = markdown(report, folder.name, set(pictures)).encode()
    files[output.with_suffix(".html")] = html_page(report.facts, report.tables, report.charts, report.examples).encode()
    for path, content in files.items():
        write_whole(path, content)
    return list(files)


def collect(catalogue: Catalogue) -> Report:
    """Everything that a report shows.

    Raises:
        StoreError: there is no metric row.
    """
    results = Results.load(catalogue)
    if not results.task_averages:
        raise StoreError("--results: contains no metrics; run evaluate-model or query-results import first")
    charts = [*all_charts(results), *reliability_charts(results)]
    return Report(summary_lines(results), standing_tables(results), charts, browsed_examples(catalogue))


def markdown(report: Report, folder: str, pictures: Collection[str]) -> str:
    """The report as Markdown, its pictures linked from a folder beside it."""
    lines = ["# Results", "", *(f"- {fact}" for fact in report.facts), "", INTERVAL_NOTE, ""]
    for chart in report.charts:
        if f"{chart.name}.png" in pictures:
            lines += [f"![{chart.caption}]({folder}/{chart.name}.png)", ""]
        if f"{chart.name}.png" in pictures or not chart.drawn:
            lines += [chart.caption, ""]
    return "\n".join([*lines, *map(markdown_section, report.tables)])


def _pictures(charts: Sequence[Chart]) -> dict[str, bytes]:
    """File name -> PNG of every chart; none without matplotlib, which is optional."""
    try:
        from logitbank.evaluation.report.png import draw_png
    except ImportError:
        logger.warning(
            "warning: the Markdown has no charts because matplotlib is not installed; pip install 'logitbank[plots]'"
        )
        return {}
    return {f"{chart.name}.png": draw_png(chart) for chart in charts if chart.drawn}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: a place that cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"--output: cannot write {path}: {error.strerror or error}") from None
