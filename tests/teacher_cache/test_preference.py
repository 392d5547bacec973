"""build-teacher-cache for comparisons: rows and folds, teachers out of fold, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from logitbank.models.classifier import open_classifier
from logitbank.models.huggingface import load_tokenizer
from logitbank.models.pair_batch import collate_pairs
from logitbank.preference import SeenPrompts, prompt_keys
from logitbank.storage import LabelStore
from logitbank.tasks.preference import PairPacker
from logitbank.teacher_cache.build_command import main
from tests import tiny
from tests.teacher_cache import preferences
from tests.teacher_cache.preferences import FOLDS, config_of, prepared_of, save_teacher


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The configuration of all builds here."""
    directory = tmp_path_factory.mktemp("comparisons")
    return [f"model.name={preferences.save_base(directory / 'base')}", *preferences.write_rows(directory)]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> list[Path]:
    """A teacher for each fold, trained without it."""
    directory = tmp_path_factory.mktemp("teachers")
    return [save_teacher(directory / f"T{fold}" / "final", options, seed=fold, held_out=fold) for fold in range(FOLDS)]


@pytest.fixture(scope="module")
def rows_alone(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Path:
    path = tmp_path_factory.mktemp("rows") / "store"
    build(path, "none", options)
    return path


@pytest.fixture
def store(rows_alone: Path, tmp_path: Path) -> Path:
    """A store of rows and folds, to be filled."""
    return Path(shutil.copytree(rows_alone, tmp_path / "store"))


def build(store: Path, view: str, options: list[str], *more: str) -> None:
    main(["--store", str(store), "--view", view, *options, *more])


def refused(capsys: pytest.CaptureFixture[str], store: Path, view: str, options: list[str], *more: str) -> str:
    """The error of a build that is refused, which has left everything as it was."""
    before = _objects(store)
    with pytest.raises(SystemExit) as stop:
        build(store, view, options, *more)
    assert stop.value.code == 2
    assert _objects(store) == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def _objects(store: Path) -> dict[str, bytes]:
    files = [path for path in store.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def test_rows_and_folds_alone(rows_alone: Path, options: list[str]) -> None:
    found, expected = LabelStore.open(str(rows_alone)), prepared_of(options)
    assert [found.train.pair(row) for row in range(len(found.train))] == list(expected.train)
    assert np.array_equal(found.train.fold, expected.folds)
    assert np.array_equal(found.validation.part, expected.parts)
    assert found.views == ()
    folds = json.loads((rows_alone / "folds.json").read_text())
    assert sorted(itertools.chain(*folds.values())) == sorted(pair.row_id for pair in expected.train)


def test_a_dry_run_writes_nothing_and_says_what_there_is(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "s", "none", [*options, "data.max_student_tokens=140"], "--dry-run")
    said = capsys.readouterr().out
    assert not (tmp_path / "s").exists()
    prepared = prepared_of(options)
    for line in prepared.report.lines():
        assert line in said
    packer = PairPacker(load_tokenizer(config_of(options).model), max_tokens=140)
    packed = [packer.pack(pair) for pair in prepared.train]
    tokens, cut = sum(len(pair.ids) for pair in packed), [pair.cut for pair in packed if pair.cut]
    assert 0 < len(cut) < len(packed)
    assert f"{len(packed)} comparisons, {tokens:,} tokens, the longest 140; {len(cut)} truncated" in said
    assert "tokens/s" in said


def test_other_rows_are_refused(store: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "folds" in refused(capsys, store, "none", [*options, "preference.folds=2"])
    assert "dedup" in refused(capsys, store, "none", [*options, "preference.dedup=none"])


def test_each_fold_is_scored_by_the_teacher_that_has_not_seen_it(
    store: Path, options: list[str], teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """What it writes is what the checkpoint says of each pair alone, packed as its head was trained."""
    longer = [*options, "data.max_student_tokens=400", "data.keep_turns=first"]  # the checkpoint's own settings decide
    for fold, teacher in enumerate(teachers):
        build(store, "llama", longer, "--fold", str(fold), "--checkpoint", str(teacher))
    assert "llama complete" in capsys.readouterr().out
    found, expected = LabelStore.open(str(store)), prepared_of(options)
    packer = PairPacker(load_tokenizer(config_of(options).model), max_tokens=240)
    for fold, teacher in enumerate(teachers):
        classifier = open_classifier(config_of(options), device="cpu", checkpoint=teacher)
        for row in np.flatnonzero(expected.folds == fold):
            with torch.no_grad():
                logits = classifier(collate_pairs([packer.pack(expected.train[row])]))[0].numpy()
            assert found.logits("llama")[row] == pytest.approx(logits, abs=1e-4)
    shards = found.scorers("llama")
    assert [(shard.fold, shard.held_out_fold, shard.trained_rows, shard.proven) for shard in shards] == [
        (fold, fold, int((expected.folds != fold).sum()), True) for fold in range(FOLDS)
    ]
    assert len({shard.weights for shard in shards}) == FOLDS


def test_a_fold_is_scored_once_and_again_only_where_it_is_missing(
    store: Path, options: list[str], teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    build(store, "llama", options, "--checkpoint", str(teachers[1]))  # the fold that it was trained without
    assert "llama lacks folds 0, 2" in capsys.readouterr().out
    whole = _objects(store)
    build(store, "llama", options, "--fold", "1", "--checkpoint", str(teachers[1]))
    assert "nothing left to do" in capsys.readouterr().out
    assert _objects(store) == whole
    (store / "manifest/llama/1.json").unlink()
    build(store, "llama", options, "--worker", "0/2", "--checkpoint", str(teachers[1]))
    assert _objects(store).keys() != whole.keys()  # the shard is the other worker's
    build(store, "llama", options, "--worker", "1/2", "--checkpoint", str(teachers[1]))
    assert _objects(store) == whole


def test_folds_of_a_view_are_scored_in_one_number_format(
    store: Path, options: list[str], teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    build(store, "whole", options, "--checkpoint", str(teachers[0]))
    build(store, "small", options, "--checkpoint", str(teachers[0]), "teacher.load_in_8bit=true")
    found = LabelStore.open(str(store))
    rows = found.train.fold == 0
    whole, small = found.logits("whole")[rows], found.logits("small")[rows]
    assert 0 < abs(whole - small).mean() < 0.1 * whole.std()
    error = refused(capsys, store, "small", options, "--checkpoint", str(teachers[1]))
    assert "quantization" in error


def test_a_dry_run_of_a_teacher_packs_its_fold(
    store: Path, options: list[str], teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = _objects(store)
    build(store, "llama", options, "--checkpoint", str(teachers[0]), "--dry-run")
    count = int((prepared_of(options).folds == 0).sum())
    assert f"{teachers[0]}, at most 240 tokens: {count} comparisons" in capsys.readouterr().out
    assert _objects(store) == before


def test_a_teacher_that_saw_its_fold_is_refused(
    store: Path, options: list[str], teachers: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, store, "llama", options, "--fold", "0", "--checkpoint", str(teachers[1]))
    assert "trained with --held-out-fold 1" in error
    train = prepared_of(options).train
    for name, seen in {
        "trained on": SeenPrompts.of(prompt_keys(train[:1])),
        "selected on": SeenPrompts.of([], prompt_keys(train[:1])),
    }.items():
        teacher = save_teacher(tmp_path / name.replace(" ", "-"), options, seen=seen)
        error = refused(capsys, store, "llama", options, "--fold", "0", "--checkpoint", str(teacher))
        assert f"was {name} 1 prompt of fold 0 (row {train[0].row_id} is one)" in error


def test_a_teacher_of_external_rows_alone_scores_all_folds(
    store: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_teacher(tmp_path / "T", options, seen=SeenPrompts.of([1, 2, 3]))
    build(store, "llama", options, "--checkpoint", str(teacher))
    assert "llama complete" in capsys.readouterr().out
    assert all(shard.proven for shard in LabelStore.open(str(store)).scorers("llama"))


def test_an_encoder_scores_too(
    store: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has neither a chat template nor a token that ends a turn, and class scores need none."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(**shape, vocab_size=280, max_position_embeddings=512)
    tokenizer = tiny.byte_tokenizer(eos=None)
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    theirs = [*options, f"model.name={tmp_path / 'bert'}"]
    teacher = save_teacher(tmp_path / "T", theirs, held_out=1)
    build(store, "bert", theirs, "--checkpoint", str(teacher))
    assert "bert lacks folds 0, 2" in capsys.readouterr().out


def test_a_checkpoint_that_says_nothing_of_what_it_saw_is_refused(
    store: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_teacher(tmp_path / "T", options)
    assert "has no seen_prompts.npz" in refused(capsys, store, "llama", options, "--checkpoint", str(teacher))


def test_a_second_teacher_of_a_fold_is_refused(
    store: Path, options: list[str], teachers: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(store, "llama", options, "--checkpoint", str(teachers[0]))
    other = save_teacher(tmp_path / "T", options, seed=9, held_out=0)
    error = refused(capsys, store, "llama", options, "--checkpoint", str(other))
    assert f"fold 0 was scored by {teachers[0]}" in error


@pytest.mark.parametrize(
    ("view", "more", "says"),
    [
        ("fewshot", [], "--view: fewshot is a kind of prompt"),
        ("Llama", [], "--view: expected lower-case letters"),
        ("none", ["--fold", "0"], "--fold: --view none writes only rows and folds"),
        ("none", ["--checkpoint", "."], "--checkpoint: --view none"),
        ("none", ["--logits", "x.npy"], "--logits: --view none"),
        ("none", ["--split", "test"], "--split: a label store contains all splits"),
        ("llama", ["--view", "qwen"], "--view: expected none"),
        ("llama", ["--checkpoint", ".", "--logits", "x.npy"], "--logits: imports"),
        ("llama", ["--checkpoint", "./nowhere"], "--checkpoint: no directory nowhere"),
        ("llama", ["--fold", "3"], "--fold: expected 0 to 2 (preference.folds), got 3"),
        ("llama", ["teacher.engine=vllm"], "teacher.engine: expected hf for comparisons"),
        ("llama", ["teacher.device_map=auto"], "teacher.device_map: expected null for comparisons"),
        ("none", ["preference.folds=100"], "preference"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    store: Path, options: list[str], capsys: pytest.CaptureFixture[str], view: str, more: list[str], says: str
) -> None:
    assert says in refused(capsys, store, view, options, *more)


@pytest.mark.parametrize("option", [["--fold", "0"], ["--checkpoint", "."], ["--logits", "x"]])
def test_other_tasks_have_no_folds(
    option: list[str], options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, tmp_path / "s", "zeroshot", [*options, "tasks=[nli]"], *option)
    assert f"{option[0]}: expected tasks=[preference], got nli" in error
