"""Stores, checkpoints and results that earlier versions wrote are read as those versions read them; see make.py."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.evaluation import evaluate_command
from logitbank.storage import TeacherStore, verify
from logitbank.storage.results.catalogue import Catalogue
from logitbank.student_train import train_command
from logitbank.teacher_cache import build_command
from tests.legacy import make
from tests.storage import stores

RECORDED: Mapping[str, Any] = {version: make.recorded_of(version) for version in make.COMMITS}
STORES = [(version, url) for version in RECORDED for url in RECORDED[version]["stores"]]
each_version = pytest.mark.parametrize("version", list(RECORDED))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`unpacked(version)`: the directory of a version's files, to be read."""

    @functools.cache
    def unpack(version: str) -> Path:
        folder = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(make.archive_of(version)) as archive:
            archive.extractall(folder, filter="data")
        return folder

    return unpack


@pytest.fixture
def files(unpacked: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> Path:
    """A copy of a version's files; commands run in it, for the paths recorded there are relative to it."""
    shutil.copytree(unpacked(version), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def originals(unpacked: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, version: str) -> Path:
    """A version's files for tests that only read; they run in it."""
    monkeypatch.chdir(unpacked(version))
    return unpacked(version)


@pytest.fixture
def written_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stores and results are written once more."""
    return tmp_path_factory.mktemp("again")


@pytest.mark.parametrize(("version", "url"), STORES)
def test_a_store_is_sound_and_every_number_is_as_it_was(originals: Path, version: str, url: str) -> None:
    recorded = RECORDED[version]["stores"][url]
    assert verify(url) == []
    store = TeacherStore.open(url)
    info = store.info
    assert (info.fingerprint, info.answer_tokens, info.shards) == (
        *(recorded["fingerprint"], recorded["answer_tokens"], recorded["shards"]),
    )
    assert info.short_fingerprint == recorded["fingerprint"][:8]
    assert info.teacher_model == info.model == "./model"
    assert info.template_hash is not None
    examples = hashlib.sha256()
    for table in (store.examples, store.validation):
        examples.update("\n".join(table.example_id).encode())
        for i in range(len(table)):
            examples.update(table.sequence(i).ids.tobytes())  # a prompt and one answer, end to end
            assert len(table.sequence(i).spans) == 1
    assert examples.hexdigest() == recorded["examples"]
    assert list(store.views) == sorted(recorded["views"])
    for view, expected in recorded["views"].items():
        assert store.view_attributes(view)["fingerprint"] == expected["fingerprint"]
        rows = store.read(range(len(store.examples)), view)
        for field, first in expected["first_row"].items():
            np.testing.assert_array_equal(getattr(rows, field)[0], np.array(first, getattr(rows, field).dtype))
        digests = {field: hashlib.sha256(getattr(rows, field).tobytes()).hexdigest() for field in expected["sha256"]}
        assert digests == expected["sha256"]


@each_version
def test_the_template_recorded_in_a_store_is_that_of_its_model(originals: Path) -> None:
    from transformers import AutoTokenizer

    from logitbank.tasks.prompts import PromptEncoder

    encoder = PromptEncoder(AutoTokenizer.from_pretrained("./model"))
    assert TeacherStore.open("stores/compact").info.template_hash == encoder.template_hash


@pytest.mark.parametrize("name", list(make.BUILDS))
def test_the_same_signal_gives_the_same_bytes(written_again: Path, name: str) -> None:
    """Format 4 has columns of its own for examples; the objects of a view are those of format 3."""
    root, recorded = written_again / name, RECORDED["0.2.0"]
    stores.build(
        str(root), stores.records(20), validation=stores.records(3, seed=1, prefix="held"), **make.BUILDS[name]
    )
    digest = hashlib.sha256()
    for path in sorted(path for path in (root / "teachers").rglob("c/**/*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in recorded["versions"]}
    if versions != recorded["versions"]:
        pytest.skip(f"codecs of other versions than {recorded['versions']} may compress to other bytes")
    assert digest.hexdigest() == recorded["built"][name]


@each_version
def test_the_command_that_built_a_store_of_format_3_leaves_it_alone(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents() -> dict[str, bytes]:
        found = [path for path in (files / "stores/hybrid").rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in found}

    before = contents()
    views = ("--view", "fewshot", "--view", "zeroshot")
    with pytest.raises(SystemExit) as stop:
        build_command.main(["--store", "stores/hybrid", *views, *make.TEACHER, *make.STORES["hybrid"]])
    assert stop.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "stores/hybrid: has format version 3, which is read but not built on" in error
    assert contents() == before


@pytest.mark.parametrize("version", ["0.2.0"])
def test_the_same_command_builds_what_has_the_same_fingerprints(originals: Path, written_again: Path) -> None:
    """In format 4 as in format 3: what a student of the old store learned can be compared with what others learn."""
    views = ("--view", "fewshot", "--view", "zeroshot")
    build_command.main(["--store", str(written_again / "store"), *views, *make.TEACHER, *make.STORES["compact"]])
    old, new = TeacherStore.open("stores/compact"), TeacherStore.open(str(written_again / "store"))
    assert _decides(new.info.identity) == _decides(old.info.identity)
    for view in old.views:
        assert new.view_attributes(view)["identity"] == old.view_attributes(view)["identity"]
    # The numbering of tokens, learned from logits, may differ on another machine; where it does not, nothing does.
    if (new.vocabulary.hash(), new.info.teacher) == (old.vocabulary.hash(), old.info.teacher):
        assert new.info.fingerprint == old.info.fingerprint
        for view in old.views:
            assert new.view_attributes(view)["fingerprint"] == old.view_attributes(view)["fingerprint"]


def _decides(identity: Mapping[str, Any]) -> dict[str, Any]:
    """A store's identity without the libraries and the machine that it was built with."""
    return {**identity, "teacher": {k: v for k, v in identity["teacher"].items() if k != "versions"}}


@each_version
def test_a_checkpoint_is_resumed_to_the_steps_that_the_old_code_took(files: Path, version: str) -> None:
    """The last two of six steps, dropout included, from the old optimizer, weights and random state."""
    for path in (files / "distilled/final", files / "results"):
        path.rename(path.with_name(f"{path.name}.old"))
    resume()
    assert (files / "distilled/final/adapter_model.safetensors").exists()
    metrics = ("loss", "student_ce", "kd", "lambda", "learning_rate")
    rows = query(["results"], "SELECT step, task, metric, value FROM training_log WHERE step > 4 ORDER BY ALL")
    found = {(row["step"], row["task"], row["metric"]): row["value"] for row in rows if row["metric"] in metrics}
    expected = {
        (row["step"], row["task"], row["metric"]): row["value"]
        for row in RECORDED[version]["queries"]["training_log"]
        if row["condition"] == "distilled" and row["step"] > 4
    }
    assert {step for step, _, _ in expected} == {5, 6}
    # Losses are float32 means over some dozens of tokens, of logits that pass two layers: 1e-4 is a thousand roundings.
    assert found == pytest.approx(expected, rel=1e-4)


@each_version
def test_a_finished_run_is_finished_still(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (files / "distilled/final/adapter_model.safetensors").read_bytes()
    resume()
    assert (files / "distilled/final/adapter_model.safetensors").read_bytes() == before
    assert len(query(["results"], "SELECT step FROM runs WHERE kind = 'training' AND condition = 'distilled'")) == 1


@each_version
def test_an_old_checkpoint_gets_the_scores_that_it_got(originals: Path, written_again: Path) -> None:
    evaluate_command.main(
        ["--results", str(written_again), "--condition", "distilled", "--checkpoint", "distilled/final", *make.EVALUATE]
    )
    question = "SELECT example_id, task, language, parsed, gold, score FROM predictions {} ORDER BY ALL"
    found = query([str(written_again)], question.format(""))
    assert len(found) == 18
    assert found == query(["results"], question.format("WHERE condition = 'distilled' AND step = 6"))
    (run,) = query([str(written_again)], "SELECT condition, step, seed, view, lambda_distill, strategy FROM runs")
    assert run == {
        **{"condition": "distilled", "step": 6, "seed": 42},
        **{"view": "fewshot", "lambda_distill": 0.5, "strategy": "fixed"},
    }


@each_version
@pytest.mark.parametrize("name", list(make.QUERIES))
def test_old_results_answer_as_they_did(originals: Path, version: str, name: str) -> None:
    assert query(["results"], make.QUERIES[name]) == RECORDED[version]["queries"][name]


def resume() -> None:
    """Train as make.py did, from where that left off."""
    places = ("--output", "distilled", "--results", "results")
    train_command.main(["--store", "stores/compact", "--view", "fewshot", *places, "--resume", *make.TRAIN])


def query(results: Sequence[str], sql: str) -> list[dict[str, Any]]:
    """Rows of an answer, as JSON has them."""
    catalogue = Catalogue([Path(path) for path in results])
    assert catalogue.torn == []
    rows: list[dict[str, Any]] = json.loads(json.dumps(catalogue.query(sql).to_pylist()))
    return rows
