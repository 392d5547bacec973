"""logitbank push and pull, against a stand-in of the hub."""

from __future__ import annotations

import hashlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml

from logitbank.__main__ import main
from logitbank.storage import StoreError, TeacherStore, open_store, verify
from logitbank.storage.objects import LOCK_NAME, open_objects
from tests import processes
from tests.hub import REPOSITORY, TOKEN, Hub
from tests.servers import FileServer, serving
from tests.storage import label_stores, stores

LAYOUT: dict[str, Any] = {"shard_tokens": 40, "chunk_tokens": 8, "top_k": 40}
TEACHER = {"model": "org/teacher", "revision": "abc123", "weights": "w" * 64, "engine": "hf", "dtype": "bfloat16"}
URL = f"hf://datasets/{REPOSITORY}"


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files of a directory but its locks."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(LOCK_NAME)
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of two views."""
    folder = tmp_path_factory.mktemp("built") / "store"
    stores.build(str(folder), stores.records(30), teacher=TEACHER, **LAYOUT)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, as one who is logged in sees it; files go up by LFS, for Xet has a protocol of its own."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("logitbank.storage.objects.web.FIRST_PAUSE", 0.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serving(site := Hub()) as url:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        yield site


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that ends with a user error: one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    *bars, last = said.strip().split("\n")  # huggingface_hub draws bars of its own
    assert last.startswith("error: "), said
    assert not [line for line in bars if "%|" not in line and line.strip()], said
    return last


def push(store: Path, *options: str) -> None:
    """Share the store."""
    main(["push", str(store), REPOSITORY, "--license", "apache-2.0", *options])


def test_a_pushed_store_is_read_and_pulled_back_byte_for_byte(
    store: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(store)
    said = capsys.readouterr().out
    assert re.search(rf"pushed to {URL}@[0-9a-f]{{12}} \(private\); read it with --store {URL}\n", said)
    assert hub.private
    assert not [path for path in store.parent.iterdir() if path.name.startswith(".push-")]
    shared, original = open_store(URL), TeacherStore.open(str(store))
    assert shared.info.fingerprint == original.info.fingerprint
    rows, same = (opened.read([3, 11], "fewshot", 20) for opened in (shared, original))
    np.testing.assert_array_equal(rows.logits, same.logits)
    assert verify(URL) == []
    main(["pull", f"{REPOSITORY}@main", str(tmp_path / "pulled")])
    assert contents(tmp_path / "pulled") == contents(store)
    assert original.info.fingerprint in capsys.readouterr().out


def test_the_card_says_what_the_store_holds(store: Path, hub: Hub, tmp_path: Path) -> None:
    push(store, "--license", "cc-by-4.0", "--public", "--view", "fewshot")
    assert hub.private is False
    _, metadata, text = hub.files["README.md"].decode().split("---\n", 2)
    about = yaml.safe_load(metadata)
    assert about["license"] == ["apache-2.0", "cc-by-4.0"]
    assert about["viewer"] is False
    opened = TeacherStore.open(str(store))
    for fact in (
        "| Teacher | org/teacher |",
        "| Revision | abc123 |",
        f"| Weights (SHA-256) | {'w' * 64} |",
        f"| Fingerprint | `{opened.info.fingerprint}` |",
        "| Examples | 30 |",
        f"| Answer tokens | {opened.info.answer_tokens} |",
        "| Per answer token | top 40 logits, `compact` |",
        "| Licences | apache-2.0, cc-by-4.0 |",
        f"`{opened.view_attributes('fewshot')['fingerprint']}`",
    ):
        assert fact in text
    assert "zeroshot" not in text
    size = int(re.search(r"\| Bytes \| ([\d,]+) \|", text)[1].replace(",", ""))  # type: ignore[index]
    assert size == sum(open_objects(URL).sizes().values())
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program is not None
    (tmp_path / "program.py").write_text(program[1])
    assert runpy.run_path(str(tmp_path / "program.py"))["rows"].logits.shape[1] == 40


def test_an_interrupted_push_goes_on_and_shows_nothing_until_it_is_whole(
    store: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse_uploads_after = 1
    said = refused(capsys, "push", str(store), REPOSITORY)
    assert "the connection to the storage was lost; run the same command to resume" in said
    assert "logitbank.json" not in hub.files
    assert len(hub.uploads) == 1
    hub.refuse_uploads_after = None
    push(store)
    assert len(hub.uploads) == len(set(hub.uploads)) == len([name for name in hub.files if name != "README.md"]) + 1
    assert verify(URL) == []
    before = len(hub.commits), len(hub.uploads)
    push(store)  # nothing has changed
    assert (len(hub.commits), len(hub.uploads)) == before


def test_a_view_that_is_pushed_later_leaves_the_others_where_they_are(store: Path, hub: Hub) -> None:
    push(store, "--view", "fewshot")
    pinned = f"{URL}@{hub.sha()}"
    before = set(hub.uploads)
    push(store)
    packs = [name for name in hub.files if name.startswith("packs/zeroshot")]
    assert len(set(hub.uploads) - before) == len(packs) + 2  # the index and the card
    assert open_store(URL).views == ("fewshot", "zeroshot")
    assert open_store(pinned).views == open_store(URL, revision=hub.sha(2)).views == ("fewshot",)
    push(store, "--view", "zeroshot")
    assert not [name for name in hub.files if name.startswith("packs/fewshot")]


def test_a_store_is_read_as_it_was_when_it_was_opened(store: Path, hub: Hub) -> None:
    push(store)
    opened = open_store(URL)
    push(store, "--view", "zeroshot")
    assert len(opened.read([0], "fewshot"))


def test_what_cannot_be_pushed(
    store: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "expected ORG/NAME, --output DIR or both" in refused(capsys, "push", str(store))
    assert "expected ORG/NAME of a dataset" in refused(capsys, "push", str(store), "name")
    assert "--public: expected at least one --license" in refused(capsys, "push", str(store), "o/n", "--public")
    assert "has no such view" in refused(capsys, "push", str(store), REPOSITORY, "--view", "other")
    label_stores.build(str(tmp_path / "labels"))
    assert "push: expected a store of teacher tokens, but" in refused(
        capsys, "push", str(tmp_path / "labels"), REPOSITORY
    )
    assert "no teacher store there" in refused(capsys, "push", str(tmp_path / "none"), REPOSITORY)
    taken = str(tmp_path / "labels")
    assert "but it holds .lock" in refused(capsys, "push", str(store), REPOSITORY, "--output", taken)
    assert "expected a directory other than the store itself" in refused(
        capsys, "push", str(store), "--output", str(store)
    )
    said = refused(capsys, "push", str(store), REPOSITORY, "--license", "made-up")
    assert "the hub rejected the data card:" in said
    assert "must be one of" in said
    assert hub.private is None  # nothing was created
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    said = refused(capsys, "push", str(store), REPOSITORY)
    assert "the hub refused (HTTP 401); log in with hf auth login, or set HF_TOKEN" in said


def test_a_view_half_built_is_not_pushed(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores.build(str(tmp_path / "store"), stores.records(30), **LAYOUT)
    (tmp_path / "store/manifest/zeroshot/1.json").unlink()
    assert "1 of 5 shards of" in refused(capsys, "push", str(tmp_path / "store"), REPOSITORY)
    push(tmp_path / "store", "--view", "fewshot")
    assert open_store(URL).views == ("fewshot",)


def test_what_the_hub_refuses_to_read_is_one_line(store: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no dataset org/logits on the hub that you can read; check its name"):
        open_store(URL)
    push(store)
    with pytest.raises(StoreError, match="org/logits has no revision v2; give a branch, tag or commit"):
        open_store(f"{URL}@v2")
    with pytest.raises(StoreError, match="expected hf://datasets/ORG/NAME"):
        open_store("hf://org/logits")
    with pytest.raises(StoreError, match=r"no logitbank\.json there"):
        open_store(f"{URL}@{hub.sha(0)}")
    hub.statuses = [503, 500]
    assert open_store(URL).views == ("fewshot", "zeroshot")
    hub.statuses = [500] * 5
    with pytest.raises(StoreError, match="the hub answered HTTP 500"):
        open_store(URL)
    hub.statuses = []
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StoreError, match="log in with hf auth login, or set HF_TOKEN"):
        open_store(URL)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="cannot reach the hub"):
        open_store(URL)


def test_a_packed_directory_is_pulled_by_its_url_and_nothing_is_built_on_it(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed"
    main(["push", str(store), "--output", str(packed)])
    assert "licence" not in (packed / "README.md").read_text().partition("\n# ")[0]
    main(["push", str(store), "--output", str(packed)])  # again, into its own directory
    main(["pull", f"file://{packed}", str(tmp_path / "pulled"), "--view", "zeroshot"])
    assert TeacherStore.open(str(tmp_path / "pulled")).views == ("zeroshot",)
    assert "a packed store is read-only" in refused(capsys, "pull", str(store), str(packed))
    assert "expected a directory on this machine" in refused(capsys, "pull", str(packed), "s3://bucket/x")


@pytest.mark.parametrize("url", ["https://example.invalid/store", "hf://datasets/org/name"])
def test_a_build_on_what_is_only_read_is_refused_before_anyone_is_asked(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: pytest.fail("a connection was tried"))
    said = refused(capsys, "build-teacher-cache", "--config", "demo", "--store", url)
    assert said.startswith(f"error: --store {url}: stores there are read-only")


def test_a_pull_from_a_web_server_prints_one_line(store: Path, tmp_path: Path) -> None:
    """As a process of its own, whose libraries log what they like."""
    main(["push", str(store), "--output", str(tmp_path / "packed")])
    with serving(FileServer(tmp_path / "packed")) as url:
        finished = processes.run("pull", url, str(tmp_path / "pulled"))
    assert finished.returncode == 0
    assert finished.stderr == ""
    assert len(finished.stdout.splitlines()) == 1
    assert contents(tmp_path / "pulled") == contents(store)
