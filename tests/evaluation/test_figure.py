"""The figure shows the table's numbers, in a file that is the same for the same rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from logitbank.errors import ConfigError
from logitbank.evaluation.report.figure import MEAN, overview_chart, said, write_figure
from logitbank.evaluation.report.results import Results
from logitbank.storage.results import Catalogue
from tests.evaluation.conftest import add_run
from tests.evaluation.test_intervals import add_predictions, correct
from tests.evaluation.test_query import run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for condition, rate in (("finetuned", 0.4), ("distilled", 0.8)):
        for task in ("nli", "pa"):
            add_predictions(tmp_path / "rows", (task, "en"), correct(rng.random(120) < rate), condition=condition)
    return tmp_path / "rows"


def test_the_chart_has_the_tables_scores_and_intervals(results: Path) -> None:
    found = Results.load(Catalogue([results]))
    chart = overview_chart(found)
    assert chart.categories == ["nli (accuracy)", "pa (accuracy)", MEAN]
    assert [series.name for series in chart.series] == ["finetuned", "distilled"]
    for series in chart.series:
        rows = {row["task"]: row for row in found.task_averages if row["condition"] == series.name}
        scores = [100 * rows[task]["language_mean"] for task in ("nli", "pa")]
        assert series.y == pytest.approx([*scores, sum(scores) / 2])
        for score, bound in zip(series.y, series.bounds, strict=True):
            assert bound is not None
            assert bound[0] < score < bound[1]
        assert f"{series.name}: nli (accuracy) {scores[0]:.1f}, " in said(chart)


def test_an_svg_has_its_words_and_numbers_and_is_the_same_again(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "out" / "first.svg", tmp_path / "second.svg"
    run(results, "figure", "--output", str(first))
    assert capsys.readouterr().out == f"wrote {first}\n"
    write_figure(Results.load(Catalogue([results])), second)
    assert first.read_bytes() == second.read_bytes()
    words = {"".join(element.itertext()).strip() for element in ElementTree.parse(first).iter()}
    assert {"nli (accuracy)", "pa (accuracy)", MEAN, "finetuned", "distilled"} <= words
    assert said(overview_chart(Results.load(Catalogue([results])))) in words


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_other_formats(results: Path, tmp_path: Path, suffix: str, begins: bytes) -> None:
    write_figure(Results.load(Catalogue([results])), tmp_path / f"figure.{suffix}")
    assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(begins)


def test_one_of_several_models_is_named(results: Path, tmp_path: Path) -> None:
    add_run(results, {("nli", "en"): 0.25}, model="org/other", condition="finetuned")
    found = Results.load(Catalogue([results]))
    with pytest.raises(ConfigError, match="--model: expected one of m, other, got several models"):
        write_figure(found, tmp_path / "figure.svg")
    with pytest.raises(ConfigError, match="--model: expected one of m, other, got n"):
        overview_chart(found, "n")
    for name in ("other", "org/other"):
        chart = overview_chart(found, name)
        assert said(chart) == "finetuned: nli (accuracy) 25.0"
        assert chart.series[0].bounds == [None]
    assert not list(tmp_path.glob("figure*"))


def test_what_cannot_be_drawn_is_one_line(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for output, line in (
        ("figure.gif", "error: --output: expected a name that ends in .svg, .png, .pdf, got "),
        ("figure.svg", "error: figure: needs matplotlib, which is not installed"),
    ):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(SystemExit) as ended:
            run(results, "figure", "--output", str(tmp_path / output))
        assert ended.value.code == 2
        assert line in capsys.readouterr().err
        assert not (tmp_path / output).exists()
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        run(tmp_path / "empty", "figure", "--output", str(tmp_path / "figure.svg"))
    assert "error: --results: " in capsys.readouterr().err
