"""The page of the examples shows how to run each of them; `make examples` runs the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.examples.run import blocks, run_all

EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".ipynb"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_runs_every_example(name: str) -> None:
    assert re.search(rf"(python|sh|jupyter execute --inplace) {re.escape(name)}\b", "\n".join(blocks()))


def test_the_page_counts_the_conversations() -> None:
    rows = [
        json.loads(line)
        for path in sorted((EXAMPLES / "conversations").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len({row["id"] for row in rows}) == len(rows)
    assert f"on {len(rows)} conversations" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_the_saved_notebook_shows_what_it_printed_and_drew() -> None:
    text = (EXAMPLES / "explore.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {"stream", "display_data"} == {output["output_type"] for output in outputs}
    assert {"stdout"} == {output["name"] for output in outputs if output["output_type"] == "stream"}, "no progress bars"
    assert "/home/" not in text
    assert "/tmp/" not in text


def test_the_first_command_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run_all(['test -z "${PYTHONPATH-}" && touch first'], tmp_path)
    with pytest.raises(SystemExit, match="exit code 3 from"):
        run_all(["(exit 3) | cat; touch second", "touch third"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
