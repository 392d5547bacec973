"""A report of everything there is: Markdown with plots beside it, and one self-contained HTML page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.configs import ConfigError
from logitbank.evaluation.report.example_browser import browsed_examples
from logitbank.evaluation.report.labels import Row, ordered_models, ordered_tasks
from logitbank.evaluation.report.page import html_page
from logitbank.evaluation.report.plots import Plot, all_plots
from logitbank.evaluation.report.render import Table, percent
from logitbank.evaluation.report.result_tables import GAPS, INTERVAL_NOTE, Results, tables_of
from logitbank.storage.results.catalogue import Catalogue

logger = logging.getLogger(__name__)

MANY_FAILURES = 0.05


@dataclass(frozen=True)
class Report:
    """What a report shows, in either form."""

    facts: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[Plot]
    examples: Sequence[dict[str, Any]]


def write_report(catalogue: Catalogue, output: Path) -> list[Path]:
    """Write `output` (Markdown), its plots in a folder beside it, and the same as one HTML page.

    Returns:
        The files written, plots first, each whole.

    Raises:
        ConfigError: no metric rows, or a place that cannot be written.
    """
    if output.suffix.lower() not in (".md", ".markdown"):
        raise ConfigError(f"--output: expected a name that ends in .md (the HTML page goes beside it), got {output}")
    report = collect(catalogue)
    folder = output.with_name(f"{output.stem}_plots")
    files = {folder / f"{plot.name}.png": plot.png for plot in report.plots}
    files[output] = markdown(report, folder.name).encode()
    files[output.with_suffix(".html")] = html_page(report.facts, report.tables, report.plots, report.examples).encode()
    for path, content in files.items():
        _write(path, content)
    return list(files)


def collect(catalogue: Catalogue) -> Report:
    """Everything that a report shows.

    Raises:
        ConfigError: there is no metric row.
    """
    results = Results.load(catalogue)
    if not results.averages:
        raise ConfigError("--results: no metric in it; evaluate-model or query-results import write them")
    try:
        plots = all_plots(catalogue, results)
    except ImportError:
        logger.warning("warning: no plots, matplotlib is missing; pip install 'logitbank[plots]'")
        plots = []
    return Report(facts(catalogue, results), tables_of(catalogue, results), plots, browsed_examples(catalogue))


def facts(catalogue: Catalogue, results: Results) -> list[str]:
    """What the rows say, in sentences computed from them."""
    count = catalogue.rows("SELECT count(*) AS predictions, count(DISTINCT run) AS runs FROM predictions")[0]
    models, conditions = ordered_models(results.averages), {row["condition"] for row in results.averages}
    found = [
        f"{len(models)} model(s) under {len(conditions)} condition(s) in {len({_place(c) for c in results.cells})} "
        f"cells; {count['predictions']} predictions of {count['runs']} evaluation(s)."
    ]
    failures = catalogue.rows(
        f"SELECT * FROM cells WHERE metric = 'parse_failure' AND value > {MANY_FAILURES} ORDER BY value DESC"
    )
    if failures:
        worst = failures[0]
        where = f"{results.labels.series(worst)}, {worst['task']}/{worst['language']}"
        found.append(
            f"More than {100 * MANY_FAILURES:.0f}% of the answers could not be read in {len(failures)} cell(s), "
            f"at worst {percent(worst['value'])}% ({where})."
        )
    for model in models:
        for gap in GAPS:
            own = [row for row in results.task_gaps if row["model"] == model and row["gap"] == gap]
            for variant in sorted({(row["setup"], row["variant"]) for row in own}):
                rows = [row for row in own if (row["setup"], row["variant"]) == variant]
                found.append(_gap_sentence(results, model, gap, variant[1], rows))
    return found


def _gap_sentence(results: Results, model: str, gap: str, variant: str, rows: Sequence[Row]) -> str:
    up: list[str] = []
    down: list[str] = []
    open_: list[str] = []
    unknown: list[str] = []
    for task in ordered_tasks(row["task"] for row in rows):
        row = next(row for row in rows if row["task"] == task)
        interval = results.gap_interval(row)
        if interval is None:
            unknown.append(task)
        elif not interval.excludes_zero:
            open_.append(task)
        else:
            (up if row["difference"] > 0 else down).append(task)
    parts = [
        f"{word} in {', '.join(tasks)}"
        for word, tasks in (
            ("higher", up),
            ("lower", down),
            ("not resolved", open_),
            ("without predictions to judge by", unknown),
        )
        if tasks
    ]
    detail = f" ({variant})" if variant else ""
    return f"{results.labels.models[model]}, {gap.replace('-', ' against ')}{detail}: {'; '.join(parts)}."


def markdown(report: Report, folder: str) -> str:
    """The report as Markdown, its plots linked from a folder beside it."""
    lines = ["# Results", "", *(f"- {fact}" for fact in report.facts), "", INTERVAL_NOTE, ""]
    for plot in report.plots:
        lines += [f"![{plot.caption}]({folder}/{plot.name}.png)", "", plot.caption, ""]
    return "\n".join([*lines, *(table.markdown() for table in report.tables)])


def _place(cell: Row) -> tuple[str, str]:
    return cell["task"], cell["language"]


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"--output: cannot write {path}: {error.strerror or error}") from None
