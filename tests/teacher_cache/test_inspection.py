"""What `inspect-cache` prints and draws, against sums over the rows themselves."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.storage import OwnSequences, TeacherStore, open_builder
from logitbank.teacher_cache.inspection import command as inspect_command
from logitbank.teacher_cache.inspection.summary import Inspection
from tests.storage import stores

EXAMPLES = stores.records(40)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = str(tmp_path_factory.mktemp("inspected") / "store")
    stores.build(made, EXAMPLES, encoding="exact", top_k=20)
    return made


@pytest.fixture(scope="module")
def facts(url: str) -> dict[str, Any]:
    return Inspection(TeacherStore.open(url)).summary()


def cell_rows(store: TeacherStore, view: str, task: str, language: str) -> Any:
    table, info = store.examples, store.info
    chosen = [
        i
        for i in range(len(table))
        if (info.tasks[table.task[i]], info.languages[table.language[i]]) == (task, language)
    ]
    return len(chosen), store.read(chosen, view)


def test_every_cell_is_the_mean_over_its_rows(url: str, facts: dict[str, Any]) -> None:
    store = TeacherStore.open(url)
    assert len(facts["rows"]) == 2 * len({(record.task, record.language) for record in EXAMPLES})
    for row in facts["rows"]:
        examples, rows = cell_rows(store, row["view"], row["task"], row["language"])
        logsumexp = rows.logsumexp.astype(np.float64)
        mass = np.exp(rows.logits - logsumexp[:, None]).sum(axis=1)
        assert (row["examples"], row["answer_tokens"]) == (examples, len(rows))
        assert row["mean_entropy"] == pytest.approx(rows.entropy.mean(), rel=1e-6)
        assert row["teacher_ce"] == pytest.approx((logsumexp - rows.gold_logit).mean(), rel=1e-6)
        assert row["teacher_accuracy"] == pytest.approx((rows.gold_rank == 0).mean())
        assert row["top_k_mass_mean"] == pytest.approx(mass.mean(), rel=1e-5)
        assert row["top_k_mass_p05"] == pytest.approx(np.quantile(mass, 0.05), rel=1e-5)


def test_bytes_are_shared_out_completely(url: str, facts: dict[str, Any]) -> None:
    """All bytes of a view's chunks and shard manifests, to the last one."""
    for view in ("fewshot", "zeroshot"):
        files = [path for path in Path(url).rglob("*") if path.is_file()]
        shards = [path for path in files if f"teachers/{view}/" in str(path) and "/c/" in str(path)]
        shards += [path for path in files if f"manifest/{view}/" in str(path) and path.stem.isdigit()]
        total = sum(row["bytes_per_token"] * row["answer_tokens"] for row in facts["rows"] if row["view"] == view)
        assert total == pytest.approx(sum(path.stat().st_size for path in shards))
        assert facts["views"][view]["bytes_per_token"] * facts["answer_tokens"] == pytest.approx(total)


def test_histograms_count_every_token_once(url: str) -> None:
    store = TeacherStore.open(url)
    inspection = Inspection(store)
    rows = store.read(range(len(store.examples)), "fewshot")
    edges, counts = inspection.entropies("fewshot")
    np.testing.assert_array_equal(counts, np.histogram(rows.entropy, edges)[0])
    edges, counts = inspection.tails("fewshot")
    tail = 1 - np.exp(rows.logits - rows.logsumexp[:, None].astype(np.float64)).sum(axis=1)
    np.testing.assert_array_equal(counts, np.histogram(tail, edges)[0])
    assert counts.sum() == len(rows)
    means = {(row["task"], row["view"]): row for row in inspection.summary()["rows"] if row["language"] == "hi"}
    assert inspection.cross_entropies().keys() == {task for task, _ in means}


def test_piped_tables_are_markdown_with_the_views_of_a_cell_below_each_other(
    url: str, facts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_command.main(["--store", url])
    text = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    for view in ("fewshot", "zeroshot"):
        assert f"fingerprint {facts['views'][view]['fingerprint']}" in text
        own = next(row for row in facts["rows"] if (row["task"], row["language"], row["view"]) == ("nli", "en", view))
        shown = next(row for row in rows if row[:2] == ["nli/en", view])
        digits = (("mean_entropy", 3), ("teacher_ce", 3), ("top_k_mass_mean", 4), ("top_k_mass_p05", 4))
        assert [f"{own[name]:.{places}f}" for name, places in digits] == [shown[i] for i in (2, 3, 5, 6)]
        over_all = next(row for row in rows if row[:2] == ["all", view])
        assert over_all[2] == f"{facts['views'][view]['mean_entropy']:.3f}"
    content = next(row for row in rows if row[:2] == ["nli", "en"])
    assert content[2:4] == [f"{own['examples']:,}", f"{own['answer_tokens']:,}"]


@pytest.mark.parametrize("arguments", [[], ["--example", EXAMPLES[3].example_id]], ids=["summary", "example"])
def test_a_terminal_of_80_columns_shows_everything(
    url: str, facts: dict[str, Any], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    inspect_command.main(["--store", url, *arguments])
    text = terminal.getvalue()
    tables = text[text.index("answer token") :] if arguments else text[text.index("\n\n") :]
    assert max(map(len, tables.splitlines())) <= 80
    assert "…" not in text
    if not arguments:
        for row in facts["rows"]:
            assert f"{row['task']}/{row['language']}" in tables
            assert f"{row['mean_entropy']:.3f}" in tables


class Terminal(io.StringIO):
    """Standard output that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_pictures_are_png_files(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_command.main(["--store", url, "--plot", str(tmp_path / "plots"), "--format", "json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["answer_tokens"]
    paths = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in paths] == ["entropy.png", "teacher_ce.png", "top_k_mass.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and str(path) in captured.err for path in paths)


def test_pictures_without_matplotlib_are_one_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stop:
        inspect_command.main(["--store", url, "--plot", str(tmp_path / "plots")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --plot: needs matplotlib")
    assert error.count("\n") == 1
    assert not (tmp_path / "plots").exists()


def test_an_example_shows_the_top_five_of_both_views(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = TeacherStore.open(url)
    inspect_command.main(["--store", url, "--example", EXAMPLES[3].example_id, "--format", "json"])
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert [entry["token_id"] for entry in tokens] == EXAMPLES[3].answer_ids.tolist()
    for view in ("fewshot", "zeroshot"):
        rows = store.read([3], view)
        for position, entry in enumerate(tokens):
            shown = entry["views"][view]
            assert [top["token_id"] for top in shown["top"]] == rows.token_ids[position, :5].tolist()
            expected = np.exp(rows.logits[position, :5] - rows.logsumexp[position])
            assert [top["probability"] for top in shown["top"]] == pytest.approx(expected.tolist())
            assert shown["gold_rank"] == rows.gold_rank[position]
    inspect_command.main(["--store", url, "--example", EXAMPLES[3].example_id])
    text = capsys.readouterr().out
    assert "| top 5" in text
    assert text.count("| fewshot") == text.count("| zeroshot") == len(EXAMPLES[3].answer_ids)


def test_a_view_with_sequences_of_its_own_is_summed_up_by_itself(
    tmp_path: Path, facts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its shards, bytes and tokens are its own; what is said of the other views does not change."""
    url, spec = str(tmp_path / "store"), stores.spec(encoding="exact", top_k=20)
    own = OwnSequences([EXAMPLES[3].example_id] * 30, stores.conversations(30))
    stores.build(url, EXAMPLES, encoding="exact", top_k=20)
    with open_builder(url, spec, EXAMPLES, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("sampled", {}, {}, own=own)
        stores.write_missing(builder, "sampled", own.sequences, 20)
    inspection = Inspection(TeacherStore.open(url))
    summary = inspection.summary()
    (row,) = [row for row in summary["rows"] if row["view"] == "sampled"]
    about = summary["views"]["sampled"]
    assert (row["task"], row["language"], row["examples"]) == (EXAMPLES[3].task, EXAMPLES[3].language, 1)
    assert about["answer_tokens"] == row["answer_tokens"] == sum(one.answer_length for one in own.sequences)
    assert (about["shards"], about["complete"]) == (inspection.store.plan_of("sampled").shards, True)
    assert row["bytes_per_token"] == pytest.approx(about["bytes_per_token"])
    files = [path for path in Path(url).rglob("*") if path.is_file()]
    rows = [path for path in (Path(url) / "teachers/sampled").glob("*/c/**/*") if path.is_file()]
    rows = [path for path in rows if "/sampled/examples/" not in str(path)]
    marks = [path for path in files if "manifest/sampled/" in str(path) and path.stem.isdigit()]
    assert about["bytes_per_token"] * about["answer_tokens"] == pytest.approx(
        sum(path.stat().st_size for path in rows + marks)
    )
    for view in ("fewshot", "zeroshot"):
        assert summary["views"][view] == facts["views"][view]
    inspect_command.main(["--store", url, "--example", EXAMPLES[3].example_id])
    printed = capsys.readouterr().out
    assert "view sampled: 30 sequences of its own" in printed
    assert "| sampled" not in printed


def test_a_half_built_view_is_left_out_where_it_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")
    stores.build(url, EXAMPLES, encoding="exact", top_k=20)
    (tmp_path / "store/manifest/fewshot/0.json").unlink()
    inspect_command.main(["--store", url, "--example", EXAMPLES[0].example_id])
    assert "view fewshot: not written yet" in capsys.readouterr().out
    inspect_command.main(["--store", url, "--example", EXAMPLES[-1].example_id])
    assert "not written yet" not in capsys.readouterr().out
    inspect_command.main(["--store", url])
    assert "shards missing" in capsys.readouterr().out
