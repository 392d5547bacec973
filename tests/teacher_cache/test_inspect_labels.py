"""What `inspect-cache` prints of a label store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from logitbank.preference import CLASSES
from logitbank.storage import LabelStore, Scorer
from logitbank.teacher_cache.inspection.command import main
from tests.storage import label_stores
from tests.storage.label_stores import FOLD, ROWS, TRAIN, builder, logits_of


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two folds scored by teachers whose record lies beside them, a third of imported logits to be finished."""
    made = str(tmp_path_factory.mktemp("inspected") / "store")
    with builder(made) as writing:
        label_stores.score(writing, "llama", [0, 2])
        writing.write_shard("llama", 2, logits_of(writing.shard_rows(2)), Scorer("a.npy", "f" * 64))
    return made


def test_the_summary_counts_rows_folds_and_scorers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--store", url, "--format", "json"])
    facts = json.loads(capsys.readouterr().out)
    assert [fold["rows"] for fold in facts["folds"]] == [ROWS] * 3
    assert facts["train"]["prompts"] == len({pair.prompt_key for pair in TRAIN})
    targets = np.array([pair.target for pair in TRAIN])
    assert [facts["train"]["classes"][name] for name in CLASSES] == pytest.approx(targets.mean(0).tolist(), abs=1e-6)
    assert facts["validation"]["parts"] == {"selection": 2, "calibration": 2, "holdout": 2}
    assert facts["external"]["rows"] == 4
    view = facts["views"]["llama"]
    assert (view["complete"], view["missing_folds"]) == (False, [1])
    assert [(fold["fold"], fold["rows"], fold["proven"], fold["trained_rows"]) for fold in view["folds"]] == [
        (0, ROWS, True, 2 * ROWS),
        (1, 8, False, None),
        (2, ROWS, True, 2 * ROWS),
    ]
    logits = logits_of(range(len(TRAIN))).astype(float)[FOLD == 0]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert view["folds"][0]["log_loss"] == pytest.approx(-(targets[FOLD == 0] * log_p).sum(1).mean(), rel=1e-6)
    assert view["fingerprint"] == LabelStore.open(url).view_fingerprint("llama", [0, 2])


def test_the_summary_as_text_says_what_is_missing_and_not_proven(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--store", url])
    text = capsys.readouterr().out
    assert "view llama: folds to be scored: 1," in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| llama" in line]
    assert [row[:5] for row in rows] == [
        ["llama", "0", "T0", "w0w0w0w0", "28 learned, 0 for selection"],
        ["llama", "1", "a.npy", "ffffffff", "not proven"],
        ["llama", "2", "T2", "w2w2w2w2", "28 learned, 0 for selection"],
    ]


def test_a_view_that_nobody_has_scored_yet_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with builder(str(tmp_path)) as writing:
        writing.add_view("llama", {}, {})
    main(["--store", str(tmp_path)])
    assert "view llama: folds to be scored: 0, 1, 2\n" in capsys.readouterr().out


def test_an_example_shows_texts_label_and_views(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = int(np.flatnonzero(FOLD == 2)[4])
    main(["--store", url, "--example", TRAIN[place].example_id, "--format", "json"])
    about = json.loads(capsys.readouterr().out)
    assert (about["fold"], about["prompt"]) == (2, list(TRAIN[place].prompt))
    assert (about["response_a"], about["response_b"]) == (list(TRAIN[place].response_a), list(TRAIN[place].response_b))
    odds = np.exp(logits_of(range(place, place + 1)).astype(float)[0])
    assert list(about["views"]["llama"].values()) == pytest.approx((odds / odds.sum()).tolist(), rel=1e-6)
    main(["--store", url, "--example", TRAIN[place].example_id])
    text = capsys.readouterr().out
    assert all(turn in text for turn in (*TRAIN[place].prompt, *TRAIN[place].response_a, *TRAIN[place].response_b))
    main(["--store", url, "--example", "preference/und/validation/5"])
    assert "validation, part holdout" in capsys.readouterr().out
    main(["--store", url, "--example", TRAIN[27].example_id])
    assert "view llama: not scored yet" in capsys.readouterr().out


def test_what_cannot_be_shown_is_one_line(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["--example", "preference/und/train/none"], "not in the store; its ids look like preference/und/train/0"),
        (["--plot", str(tmp_path / "plots")], "--plot: needs a teacher store of tokens"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--store", url, *arguments])
        error = capsys.readouterr().err
        assert (stopped.value.code, says in error, error.count("\n")) == (2, True, 1)
    assert not (tmp_path / "plots").exists()


def test_verification_says_what_is_not_proven(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label_stores.build(str(tmp_path))
    main(["--store", str(tmp_path), "--verify"])
    assert "every fold was scored by who had not seen its prompts" in capsys.readouterr().out
    with builder(str(tmp_path)) as writing:
        writing.add_view("imported", {}, {})
        for shard in writing.missing_shards("imported", 1):
            writing.write_shard("imported", shard, logits_of(writing.shard_rows(shard)), Scorer("a.npy", "f"))
    main(["--store", str(tmp_path), "--verify", "--format", "json"])
    about = json.loads(capsys.readouterr().out)
    assert (about["sound"], about["unproven_folds"]) == (True, {"imported": [1]})
    main(["--store", str(tmp_path), "--verify"])
    assert "view imported: not proven out of fold" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--store", url, "--verify"])
    assert "view llama, fold 1: 1 of 2 shards not written yet" in capsys.readouterr().out
