"""Duplicates, leaks, folds and parts of comparisons, on planted rows and on real ones."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitbank.configs import data_settings, load_config
from logitbank.preference import prompt_keys
from logitbank.tasks import DataSettings, PreferenceSettings, TaskError
from logitbank.tasks.preference import PARTS, Prepared, load_pairs, part_of, prepare
from tests.tasks.comparisons import preferring, row, settings, write_csv

WINNERS = ("a", "b", "tie")


def planted(prompts: int, *, most: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of so many prompts, one to `most` of each, in any order."""
    draw = random.Random(seed)
    rows = [
        row(f"prompt {prompt}", f"answer {prompt} {number}", f"other {prompt} {number}", draw.choice(WINNERS))
        for prompt in range(prompts)
        for number in range(draw.randint(1, most))
    ]
    draw.shuffle(rows)
    return [{**one, "id": f"r{number}"} for number, one in enumerate(rows)]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A validation file whose prompts no other file has."""
    return write_csv(tmp_path_factory.mktemp("held") / "v.csv", [row(f"held {n}", "x", "y") for n in range(9)])


def prepared(path: Path, rows: list[dict[str, Any]], held: str, seed: int = 3, **changes: Any) -> Prepared:
    preference = PreferenceSettings(**{"folds": 2, **changes})
    return prepare(preferring(preference, seed=seed, train=write_csv(path / "t.csv", rows), validation=held))


def targets(found: Prepared) -> dict[str, Any]:
    return {pair.row_id: pair.target for pair in found.train}


def test_no_prompt_is_in_two_folds_and_classes_are_in_equal_shares(tmp_path: Path, held: str) -> None:
    rows = planted(400)
    rows += [row("big", f"only {n}", "y", "a" if n % 3 else "tie", id=f"big{n}") for n in range(60)]
    found = prepared(tmp_path, rows, held, folds=5)
    fold_of: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for pair, fold in zip(found.train, found.folds, strict=True):
        fold_of[pair.prompt].add(int(fold))
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert len(found.train) == len(rows) == sum(found.report.folds)
    counts = np.bincount(found.folds)
    assert counts.max() - counts.min() <= 6, "more than the rows of a prompt"
    classes = np.array([np.argmax(pair.target or ()) for pair in found.train])
    overall = np.bincount(classes) / len(classes)
    for fold in range(5):
        share = np.bincount(classes[found.folds == fold]) / counts[fold]
        assert np.abs(share - overall).max() < 0.01
    assert found.report.train.prompts == 401


def test_folds_follow_the_seed_and_the_content_but_not_the_order_of_rows(tmp_path: Path, held: str) -> None:
    def folds(found: Prepared) -> dict[str, int]:
        return {pair.row_id: int(fold) for pair, fold in zip(found.train, found.folds, strict=True)}

    rows = planted(80)
    first = prepared(tmp_path, rows, held, folds=5)
    assert folds(prepared(tmp_path, rows[::-1], held, folds=5)) == folds(first)
    assert prepared(tmp_path, rows, held, folds=5).train == first.train
    assert folds(prepared(tmp_path, rows, held, folds=5, seed=4)) != folds(first)


def test_the_order_is_by_fold_and_drawn_within_it(tmp_path: Path, held: str) -> None:
    rows = planted(200)
    found = prepared(tmp_path, rows, held, folds=5)
    assert found.folds.dtype == np.int8
    assert np.all(np.diff(found.folds) >= 0)
    place = {one["id"]: number for number, one in enumerate(rows)}
    places = np.array([place[pair.row_id] for pair in found.train])
    for fold in range(5):
        own = places[found.folds == fold]
        assert 0.3 < (np.diff(own) > 0).mean() < 0.7, "as in the file, or backwards"


def test_duplicates_are_merged_whichever_answer_stands_first(tmp_path: Path, held: str) -> None:
    rows = [
        row("p", "x", "y", "a", id="same"),
        row("p ", " x", "y", "a", id="same, in other space"),
        row("q", "x", "y", "b", id="swapped"),
        row("q", "y", "x", "a", id="swapped, and agrees"),
        row("r", "x", "y", "a", id="contradicted"),
        row("r", "y", "x", "a", id="contradicts"),
        row("r", "x", "y", "tie", id="contradicts too"),
        row("r", "x", "z", "b", id="another answer"),
        row("s", "x", "x", "a", id="equal answers"),
        row("t", ["x"], ["y"], "tie", id="tie"),
        row("t", ["y"], ["x"], "tie", id="swapped tie"),
    ]
    found = prepared(tmp_path, rows, held)
    assert targets(found) == {
        "same": (1, 0, 0),
        "swapped": (0, 1, 0),
        "contradicted": pytest.approx((1 / 3, 1 / 3, 1 / 3)),
        "another answer": (0, 1, 0),
        "equal answers": (1, 0, 0),
        "tie": (0, 0, 1),
    }
    counts = found.report.train
    assert (counts.read, counts.merged, counts.contradictory, counts.used, found.report.soft) == (11, 5, 1, 6, 1)
    assert next(pair for pair in found.train if pair.row_id == "swapped").response_a == ("x",)

    one_each = prepared(tmp_path, rows, held, dedup="prompt")
    assert set(targets(one_each)) == {"same", "swapped", "contradicted", "equal answers", "tie"}
    assert (one_each.report.train.same_prompt, one_each.report.train.merged) == (1, 5)

    everything = prepared(tmp_path, rows, held, dedup="none")
    assert set(targets(everything)) == {one["id"] for one in rows}
    assert (everything.report.train.merged, everything.report.soft) == (0, 0)


def test_probabilities_are_averaged_in_the_order_of_the_first(tmp_path: Path, held: str) -> None:
    names = ("winner_model_a_prob", "winner_model_b_prob", "winner_tie_prob")
    said = [("x", "y", (0.5, 0.3, 0.2)), ("y", "x", (0.1, 0.6, 0.3)), ("x", "z", (0, 1, 0))]
    rows = [
        {
            "id": f"{n}",
            "prompt": f"p {n // 2}",
            "response_a": a,
            "response_b": b,
            **dict(zip(names, numbers, strict=True)),
        }
        for n, (a, b, numbers) in enumerate(said)
    ]
    rows.append({**rows[2], "prompt": "q", "id": "3"})
    assert targets(prepared(tmp_path, rows, held))["0"] == pytest.approx((0.55, 0.2, 0.25))


def test_what_validation_or_test_ask_is_never_trained_on(tmp_path: Path) -> None:
    base = [row(f"p {n}", "x", "y", WINNERS[n % 3], id=f"b{n}") for n in range(20)]
    validation = write_csv(tmp_path / "v.csv", [row("p 3 ", "other", "answers"), row("v", "x", "y")])
    test = write_csv(tmp_path / "s.csv", [row("p 5", "x", "y"), row("v", "x", "z")])
    external = [
        write_csv(tmp_path / "e0.csv", [row("p 3", "1", "2"), row("p 7", "1", "2"), row("e", "x", "y", id="7")]),
        write_csv(tmp_path / "e1.csv", [row("e", "y", "x", "b", id="7"), row("p 5", "1", "2"), row("f", "x", "y")]),
    ]
    data = settings(external=external, train=write_csv(tmp_path / "t.csv", base), validation=validation, test=test)
    for dedup in ("pair", "prompt", "none"):
        found = prepare(dataclasses.replace(data, preference=dataclasses.replace(data.preference, dedup=dedup)))
        asked = set(prompt_keys([*load_pairs("validation", data), *load_pairs("test", data)]))
        trained, further = set(prompt_keys(found.train)), set(prompt_keys(found.external))
        assert not (trained | further) & asked
        assert not trained & further, "a teacher that saw it could score no fold of it"
        assert (found.report.train.leaking, found.report.train.used) == (2, 18)
        counts = found.report.external
        assert (counts.read, counts.leaking, counts.known) == (6, 2, 1)
        assert (counts.merged, counts.used) == ((0, 3) if dedup == "none" else (1, 2))
        assert found.report.shared == 1
    assert [pair.example_id for pair in found.external] == [
        f"preference/und/external/{name}" for name in ("0-7", "1-7", "1-row-3")
    ]


def test_a_share_of_prompts_is_held_out_by_content(tmp_path: Path) -> None:
    rows = planted(1500, most=3)
    data = settings(train=write_csv(tmp_path / "t.csv", rows))
    train, validation = load_pairs("train", data), load_pairs("validation", data)
    assert len(train) + len(validation) == len(rows)
    assert not set(prompt_keys(train)) & set(prompt_keys(validation))
    assert 48 <= len(set(prompt_keys(validation))) <= 102  # of 75, a standard deviation of 8.4
    assert {pair.example_id.split("/")[2] for pair in validation} == {"validation"}
    fewer = settings(train=write_csv(tmp_path / "u.csv", rows[::-2]))
    held_out = {pair.row_id for pair in validation}
    assert {pair.row_id for pair in load_pairs("validation", fewer)} == held_out & {one["id"] for one in rows[::-2]}
    found = prepare(data)
    assert found.report.train.held_out == len(validation) == found.report.validation
    assert found.validation == tuple(validation)
    with pytest.raises(TaskError, match=r"^preference.train: preference.holdout=1 holds out all of its .* rows; lower"):
        load_pairs("train", preferring(PreferenceSettings(holdout=1), train=str(tmp_path / "t.csv")))


def test_validation_has_three_parts_that_share_no_prompt(tmp_path: Path) -> None:
    rows = planted(1000, most=3)
    file = write_csv(tmp_path / "v.csv", rows)
    data = settings(validation=file)
    parts = {part: load_pairs(part, data) for part in PARTS}
    prompts = {part: set(prompt_keys(pairs)) for part, pairs in parts.items()}
    assert sum(map(len, parts.values())) == len(rows)
    assert sum(map(len, prompts.values())) == 1000
    assert abs(len(prompts["selection"]) - 200) < 40
    assert abs(len(prompts["calibration"]) - 400) < 50
    without = preferring(PreferenceSettings(selection=0), validation=file)
    assert load_pairs("selection", without) == []
    with pytest.raises(TaskError, match="split: expected one of train, validation, test, selection, calibration, hold"):
        load_pairs("held_out", data)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.floats(0, 1))
def test_the_part_of_a_prompt_depends_on_nothing_else(keys: list[int], selection: float) -> None:
    together = part_of(np.array(keys, dtype=np.uint64), selection)
    alone = [part_of(np.array([key], dtype=np.uint64), selection)[0] for key in keys]
    assert together.dtype == np.int8
    assert together.tolist() == alone


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (planted(4, most=9), "expected at most as many folds as prompts (4), got 5; bring more rows, or ask for fewer"),
        (
            [row(f"p {n}", "x", "y", WINNERS[n % 3]) for n in range(9)],
            "expected a class with at least 5 rows, the largest class has 3; bring more rows, or ask for fewer folds",
        ),
    ],
)
def test_too_few_rows_for_the_folds_are_one_line(
    rows: list[dict[str, Any]], says: str, tmp_path: Path, held: str
) -> None:
    with pytest.raises(TaskError) as caught:
        prepared(tmp_path, rows, held, folds=5)
    assert str(caught.value).startswith(f"preference.folds: {says}")
    assert "\n" not in str(caught.value)


def test_nothing_left_to_train_on_is_one_line(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", [row("p", "x", "y"), row("q", "x", "y")])
    with pytest.raises(
        TaskError, match=r"^preference.train: all of its 2 rows share a prompt with validation or test rows"
    ):
        prepare(settings(train=file, validation=file))


def test_the_report_says_it_in_words(tmp_path: Path) -> None:
    base = [row(f"p {n}", "x", "y", WINNERS[n % 3]) for n in range(30)]
    base += [row("p 0", "y", "x", "a"), row("p 1", "", "y"), row("v", "x", "y")]
    held = write_csv(tmp_path / "v.csv", [row("v", "x", "y")])
    external = [write_csv(tmp_path / "e.csv", [row("p 1", "x", "y"), row("e", "x", "y")])]
    data = settings(external=external, train=write_csv(tmp_path / "t.csv", base), validation=held, test=held)
    report = prepare(data).report
    assert report.lines()[:2] == [
        "train: 33 read, 1 without text, 1 with a prompt of validation or test, 1 merged into duplicates "
        "(1 contradictory group), 30 used (30 prompts)",
        "external: 2 read, 1 with a prompt of the training rows, 1 used (1 prompt)",
    ]
    assert report.lines()[2].startswith("validation: 1 used (")
    assert report.lines()[2].endswith("; 1 with a prompt of test")
    assert report.lines()[3:] == [
        "test: 1",
        "classes: model_a 10 (33.3%), model_b 10 (33.3%), tie 10 (33.3%); 1 soft label",
        "folds: 6, 6, 6, 6, 6",
    ]
    assert report.as_json()["train"]["contradictory"] == 1


def test_the_configuration_says_it_all() -> None:
    given = ["preference.train=t", "preference.external=[e,f]", "preference.folds=3", "preference.dedup=none"]
    config = load_config([], ["model.name=m", "tasks=[preference]", "seed=7", *given, "preference.holdout=0.5"])
    assert data_settings(config) == DataSettings(
        seed=7,
        files={"preference": {"train": "t"}},
        preference=PreferenceSettings(external=("e", "f"), holdout=0.5, dedup="none", folds=3),
    )
    assert config.data.max_train_per_task is None
    assert load_config([], ["model.name=m"]).data.max_train_per_task == 5000


@pytest.fixture(scope="module")
def real(shared: Path) -> DataSettings:
    """The real rows, in three files."""
    return settings(**{name: str(shared / "preference" / f"{name}.csv") for name in ("train", "validation", "test")})


def test_real_rows_have_the_duplicates_that_were_counted(real: DataSettings) -> None:
    rows = load_pairs("train", real)
    assert (len(rows), len(set(prompt_keys(rows)))) == (1291, 699)
    ordered = Counter((pair.prompt, pair.response_a, pair.response_b) for pair in rows)
    assert len(rows) - len({pair.pair_key for pair in rows}) == 53
    assert len(rows) - len(ordered) == 34
    report = prepare(real).report
    assert (report.train.read, report.train.merged, report.train.contradictory) == (1291, 53, 5)
    assert (report.train.used, report.train.prompts, report.train.leaking, report.soft) == (1238, 699, 0, 5)


def test_real_rows_before_deduplication_fall_into_even_folds(real: DataSettings) -> None:
    found = prepare(dataclasses.replace(real, preference=PreferenceSettings(dedup="none")))
    assert all(250 <= size <= 265 for size in found.report.folds)
    assert sum(found.report.folds) == len(found.train) == 1291
    classes = np.array([np.argmax(pair.target or ()) for pair in found.train])
    overall = np.bincount(classes) / len(classes)
    seen: set[int] = set()
    for fold in range(5):
        own = found.folds == fold
        assert np.abs(np.bincount(classes[own]) / own.sum() - overall).max() < 0.005
        prompts = set(prompt_keys([pair for pair, of in zip(found.train, own, strict=True) if of]))
        assert not prompts & seen
        seen |= prompts
