"""A label store holds out-of-fold logits alone: what is not is refused when written, and found when it got in."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from logitbank.errors import CorruptStoreError, StoreError
from logitbank.preference import Pair, SeenPrompts, prompt_keys
from logitbank.storage import LabelStore, Scorer, TeacherStore, open_label_builder, verify_labels
from logitbank.storage.objects import ObjectEntry, fold_key, open_objects, read_manifest, shard_key, write_manifest
from tests.storage import label_stores, stores
from tests.storage.label_stores import EXTERNAL, PART, TRAIN, VALIDATION, build, builder, logits_of, teacher


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        (teacher(1), r"view llama, fold 0: T1 trained on 7 prompts of it \(first row 0\).*--held-out-fold 0"),
        (teacher(0, selected=[TRAIN[5].prompt_key]), r"T0 was selected on 1 prompt of it \(first row 4\)"),
        (Scorer("T1", "w", fold=1), "trained without fold 1, not this one"),
    ],
    ids=["trained", "selected", "another fold"],
)
def test_a_scorer_that_saw_the_fold_is_refused(tmp_path: Path, scorer: Scorer, says: str) -> None:
    with builder(str(tmp_path)) as made:
        made.add_view("llama", {}, {})
        for shard in made.missing_shards("llama", 0):
            with pytest.raises(StoreError, match=says):
                made.write_shard("llama", shard, logits_of(made.shard_rows(shard)), scorer)
        assert made.missing_shards("llama", 0) == [0, 1]
        assert not made.objects.exists(fold_key("llama", 0))


def test_a_prompt_elsewhere_in_the_fold_counts_too(tmp_path: Path) -> None:
    """The rows of a shard alone would not do: the next shard of the fold has them."""
    last_of_fold = TRAIN[13].prompt_key
    scorer = Scorer("T0", "w", 0, SeenPrompts.of([last_of_fold]))
    with builder(str(tmp_path)) as made:
        made.add_view("llama", {}, {})
        with pytest.raises(StoreError, match="trained on 1 prompt"):
            made.write_shard("llama", 0, logits_of(made.shard_rows(0)), scorer)


def test_nobody_else_scores_the_rest_of_a_fold(tmp_path: Path) -> None:
    with builder(str(tmp_path)) as made:
        made.add_view("llama", {}, {})
        made.write_shard("llama", 0, logits_of(made.shard_rows(0)), teacher(0))
    with builder(str(tmp_path)) as made:
        made.add_view("llama", {}, {})
        rest = logits_of(made.shard_rows(1))
        with pytest.raises(
            StoreError, match=r"fold 0: started with T0 \(weights w0w0.*a fold is scored by one teacher"
        ):
            made.write_shard("llama", 1, rest, teacher(0, weights="v"))
        with pytest.raises(StoreError, match="a different record of training prompts"):
            made.write_shard("llama", 1, rest, teacher(0, seen=None))
        made.write_shard("llama", 1, rest, teacher(0, model="elsewhere/T0"))
        made.write_shard("llama", 2, logits_of(made.shard_rows(2)), teacher(1, weights="v"))
    assert [shard.fold for shard in LabelStore.open(str(tmp_path)).scorers("llama")] == [0, 0, 1]


@pytest.mark.parametrize(
    ("logits", "says"),
    [
        (np.zeros((8, 2), np.float32), r"expected logits \(8, 3\) float32, got \(8, 2\)"),
        (np.zeros((7, 3), np.float32), r"got \(7, 3\)"),
        (np.zeros((8, 3), np.float64), "got .* float64"),
        (np.array([[0, 0, 0]] * 7 + [[0, np.nan, 0]], np.float32), r"finite logits.*train/7 \(1 such row\)"),
        (np.array([[0, 0, np.inf]] * 8, np.float32), r"finite logits.*train/0 \(8 such rows\)"),
    ],
)
def test_logits_that_are_none_are_refused(tmp_path: Path, logits: NDArray[np.float32], says: str) -> None:
    with builder(str(tmp_path)) as made:
        made.add_view("llama", {}, {})
        with pytest.raises(StoreError, match=says):
            made.write_shard("llama", 0, logits, teacher(0))
        assert made.missing_shards("llama", 0) == [0, 1]


def test_imported_logits_are_not_proven(tmp_path: Path) -> None:
    with builder(str(tmp_path)) as made:
        made.add_view("imported", {}, {})
        for shard in made.missing_shards("imported"):
            scorer = Scorer("a.npy", "f" * 64, details={"file": "a.npy"})
            made.write_shard("imported", shard, logits_of(made.shard_rows(shard)), scorer)
    shards = LabelStore.open(str(tmp_path)).scorers("imported")
    assert {(shard.proven, shard.trained_rows, shard.held_out_fold) for shard in shards} == {(False, None, None)}
    assert shards[0].details == {"file": "a.npy"}
    assert verify_labels(str(tmp_path)) == []


def _pair(name: str, prompt: str, target: Any = (1.0, 0.0, 0.0)) -> Pair:
    return Pair(f"preference/und/{name}", (prompt,), ("a",), ("b",), target)


@pytest.mark.parametrize(
    ("train", "folds", "says"),
    [
        ([], [], "at least one row"),
        ([_pair("train/0", "x"), _pair("train/1", "y")], [0], r"expected one for each row \(2\), got 1"),
        ([_pair("train/0", "x"), _pair("train/1", "y")], [1, 0], "expected rows sorted by fold"),
        ([_pair("train/0", "x"), _pair("train/1", "y")], [0, 0], "leave fold 1 of 2 empty; use fewer folds"),
        ([_pair("train/0", "x"), _pair("train/0", "y")], [0, 1], "unique ids"),
        ([_pair("train/0", "x", None), _pair("train/1", "y")], [0, 1], "train/0: has no label"),
        ([_pair("train/0", "x", (0.5, 0.4, 0.0)), _pair("train/1", "y")], [0, 1], "whose sum is 1"),
        ([_pair("train/0", "x", (1.5, -0.5, 0.0)), _pair("train/1", "y")], [0, 1], "train/0: expected three prob"),
        ([_pair("train/0", "x"), _pair("train/1", "x ")], [0, 1], r"fold 0\) and .* \(fold 1\) have the same prompt"),
        ([_pair("train/0", "x"), _pair("train/1", "v")], [0, 1], "1 row with prompts of validation"),
    ],
)
def test_rows_that_no_store_can_hold_are_refused(tmp_path: Path, train: Any, folds: list[int], says: str) -> None:
    spec = label_stores.spec(folds=2)
    validation = [_pair("validation/0", "v")]
    opened = open_label_builder(
        str(tmp_path), spec, train, np.array(folds, np.int8), validation, np.zeros(1, np.int8), []
    )
    with pytest.raises(StoreError, match=says), opened:
        pass
    assert not (tmp_path / "zarr.json").exists()


def test_other_rows_or_settings_are_not_mixed_in(tmp_path: Path) -> None:
    build(str(tmp_path))
    with pytest.raises(StoreError, match=r"seed = 1, but this run requests 2"), builder(str(tmp_path), seed=2):
        pass
    with pytest.raises(StoreError, match=r"dedup = pair"), builder(str(tmp_path), identity={"dedup": "none"}):
        pass
    changed = [*TRAIN[:-1], label_stores.pairs("train", len(TRAIN), 500)[-1]]
    with pytest.raises(StoreError, match=r"train.hash"), builder(str(tmp_path), train=changed):
        pass
    with builder(str(tmp_path)) as made, pytest.raises(StoreError, match=r"view llama: .*max_tokens = 16"):
        made.add_view("llama", {"max_tokens": 32}, {})


def test_each_kind_of_store_names_the_other(tmp_path: Path) -> None:
    build(str(tmp_path / "labels"), views=())
    stores.build(str(tmp_path / "tokens"), stores.records(3))
    with pytest.raises(StoreError, match=r"is a label store, which tasks=\[preference\] reads, but these tasks"):
        TeacherStore.open(str(tmp_path / "labels"))
    with pytest.raises(StoreError, match=r"holds teacher tokens, but tasks=\[preference\] needs a label store"):
        LabelStore.open(str(tmp_path / "tokens"))
    with pytest.raises(StoreError, match=r"holds teacher tokens"), builder(str(tmp_path / "tokens")):
        pass
    with pytest.raises(StoreError, match=r"is a label store"):
        stores.build(str(tmp_path / "labels"), stores.records(3))
    with pytest.raises(StoreError, match=r"no label store there .*build-teacher-cache --view none"):
        LabelStore.open(str(tmp_path / "nothing"))


# Stores that were tampered with: every hash is right, what they say is not.

Change = Callable[[dict[str, Any], dict[str, bytes]], None]


def _tamper(place: Path, key: str, change: Change) -> None:
    """Rewrite a manifest, and the objects that it lists, after a change to either."""
    objects = open_objects(str(place))
    entries, details = read_manifest(objects, key)
    contents = {name: objects.get(name) for name in entries}
    change(details, contents)
    for name, data in contents.items():
        (place / name).write_bytes(data)
    write_manifest(objects, key, {name: ObjectEntry.of(data) for name, data in contents.items()}, details)


SELECTED = 8 * -(-len(TRAIN) // 8)  # the first bit of the second mask


def _also_saw(bit: int) -> Change:
    def change(details: dict[str, Any], contents: dict[str, bytes]) -> None:
        for name in contents:
            data = bytearray(contents[name])
            data[bit // 8] |= 1 << bit % 8
            contents[name] = bytes(data)

    return change


def _says(**values: Any) -> Change:
    def change(details: dict[str, Any], contents: dict[str, bytes]) -> None:
        for name, value in values.items():
            (details if name in details else details["scorer"])[name] = value

    return change


def _other_folds(details: dict[str, Any], contents: dict[str, bytes]) -> None:
    folds = json.loads(contents["folds.json"])
    folds["0"][0], folds["1"][0] = folds["1"][0], folds["0"][0]
    contents["folds.json"] = json.dumps(folds).encode()


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        (
            fold_key("llama", 0),
            _also_saw(3),
            "shard 0, fold 0: not out of fold: T0 trained on the prompts of 1 row .*/3",
        ),
        (fold_key("llama", 0), _also_saw(SELECTED + 30), "saw other rows than its manifest counts"),
        (fold_key("llama", 0), _says(weights="x"), "which is not the teacher that"),
        (shard_key("llama", 2), _says(held_out_fold=0), "T1 was trained without fold 0, not this one"),
        (shard_key("llama", 2), _says(fold=0), "its rows are 14 to 21, of fold 1"),
        (shard_key("llama", 2), _says(examples=[0, 8]), "its rows are 14 to 21, of fold 1"),
        ("manifest/base.json", _other_folds, "folds.json: its folds are not those of the training rows"),
    ],
)
def test_what_is_not_out_of_fold_is_found(tmp_path: Path, key: str, change: Change, says: str) -> None:
    build(str(tmp_path))
    assert verify_labels(str(tmp_path)) == []
    _tamper(tmp_path, key, change)
    problems = verify_labels(str(tmp_path))
    assert any(re.search(says, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("manifest", "array", "value", "says"),
    [
        ("manifest/base.json", "train/target", [0.5, 0.4, 0.0], "train/0: expected probabilities whose sum is 1"),
        ("manifest/base.json", "validation/target", [np.nan, 0.5, 0.5], "validation/0: expected probabilities"),
        ("manifest/base.json", "external/prompt_key", 7, "external/0: its keys are not those of its text"),
        ("manifest/base.json", "train/row", 9, "rows do not lie where their folds begin"),
        ("manifest/base.json", "train/text", ord("x"), "train/0: its text cannot be read"),
        (shard_key("llama", 0), "teachers/llama/logits", [0.0, np.inf, 0.0], "fold 0: logits that are not finite"),
    ],
)
def test_numbers_that_mean_nothing_are_found(tmp_path: Path, manifest: str, array: str, value: Any, says: str) -> None:
    build(str(tmp_path))
    found = zarr.open_array(str(tmp_path), path=array, mode="r+")
    found[0] = value
    _tamper(tmp_path, manifest, lambda details, contents: None)
    problems = verify_labels(str(tmp_path))
    assert any(says in problem for problem in problems), problems


def test_a_prompt_on_both_sides_is_found(tmp_path: Path) -> None:
    """Validation that lies where it would if another builder had written it."""
    build(str(tmp_path))
    other = tmp_path / "other"
    spec, train = label_stores.spec(folds=1), label_stores.pairs("train", 6, 1000)
    held = [pair for pair in TRAIN if pair.example_id.endswith(("/0", "/1"))]
    with open_label_builder(str(other), spec, train, np.zeros(6, np.int8), held, np.zeros(len(held), np.int8), []):
        pass
    shutil.rmtree(tmp_path / "validation")
    shutil.copytree(other / "validation", tmp_path / "validation")
    shutil.rmtree(other)
    _tamper(tmp_path, "manifest/base.json", lambda details, contents: None)
    problems = verify_labels(str(tmp_path))
    assert problems == ["train: 2 rows with prompts of validation (first preference/und/train/0)"]


def test_a_store_in_the_making_is_sound_but_for_folds_begun(tmp_path: Path) -> None:
    with builder(str(tmp_path)) as made:
        assert verify_labels(str(tmp_path)) == []
        label_stores.score(made, "llama", [1])
        assert verify_labels(str(tmp_path)) == []
        made.write_shard("llama", 0, logits_of(made.shard_rows(0)), teacher(0))
        assert verify_labels(str(tmp_path)) == ["view llama, fold 0: 1 of 2 shards not written yet"]


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    """One bit of every object: an error where it is read, and a line of `verify`."""
    build(str(tmp_path))
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size):
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        name = path.relative_to(tmp_path).as_posix()
        assert any(name in problem for problem in verify_labels(str(tmp_path))), name
        path.write_bytes(good)
    (tmp_path / "teachers/llama/logits/c/0/0").unlink()
    with pytest.raises(CorruptStoreError, match=r"delete manifest/llama/0.json and run the same"):
        LabelStore.open(str(tmp_path)).logits("llama")
    text = tmp_path / "train/text/c/0"
    text.write_bytes(text.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptStoreError, match=r"train/text"):
        LabelStore.open(str(tmp_path)).train.pair(0)


def test_what_every_row_costs(tmp_path: Path) -> None:
    """88,000 rows, five folds: the arena's whole training set. A view takes at most 64 bytes a row, masks included."""
    count, folds = 88_000, 5
    train = [_pair(f"train/{i}", f"{i}") for i in range(count)]
    fold = np.repeat(np.arange(folds), count // folds).astype(np.int8)
    keys = prompt_keys(train)
    logits = np.random.default_rng(0).normal(0, 2, (count, 3)).astype(np.float32)
    spec = label_stores.spec(folds=folds, shard_rows=4096)
    with open_label_builder(str(tmp_path), spec, train, fold, VALIDATION, PART, EXTERNAL) as made:
        made.add_view("llama", {}, {})
        for shard in made.missing_shards("llama"):
            held = made.shard_fold(shard)
            scorer = Scorer(f"T{held}", str(held) * 64, held, SeenPrompts.of(keys[fold != held], keys[:0]))
            rows = made.shard_rows(shard)
            made.write_shard("llama", shard, logits[rows.start : rows.stop], scorer)
    sizes = open_objects(str(tmp_path)).sizes()
    view = sum(size for key, size in sizes.items() if key.split("/")[1:2] == ["llama"])
    masks = sum(size for key, size in sizes.items() if key.startswith("teachers/llama/seen/"))
    assert masks == folds * 2 * count // 8
    assert view <= 16 * count
    assert (LabelStore.open(str(tmp_path)).logits("llama") == logits).all()
