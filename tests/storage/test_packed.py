"""Packed stores: on a disk and behind a web server that is slow, fails or lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.storage import CorruptStoreError, StoreError, TeacherStore, open_store, verify
from logitbank.storage.objects import (
    BASE_KEY,
    INDEX_NAME,
    LOCK_NAME,
    PACK_BYTES,
    bytes_of,
    copy_objects,
    open_objects,
    pack_objects,
    read_manifest,
    web,
    write_manifest,
)
from tests.servers import FileServer, serving
from tests.storage import stores

LAYOUT: dict[str, Any] = {"shard_tokens": 40, "chunk_tokens": 8, "top_k": 40}
EXAMPLES = stores.records(30)


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files of a directory but its locks and plans."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        key: hashlib.sha256(path.read_bytes()).hexdigest()
        for key, path in sorted(files.items())
        if not key.startswith((LOCK_NAME, "plan/"))
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as it was built."""
    folder = tmp_path_factory.mktemp("built") / "store"
    stores.build(str(folder), EXAMPLES, validation=stores.records(3, seed=5, prefix="validation"), **LAYOUT)
    (folder / "plan").mkdir()
    (folder / "plan/fewshot.json").write_bytes(b"what a build leaves for the next")
    return folder


@pytest.fixture(scope="module")
def packed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same store, packed."""
    folder = tmp_path_factory.mktemp("packed") / "packed"
    pack_objects(open_objects(str(store)), folder, pack_bytes=10_000)
    return folder


@pytest.fixture
def site(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A web server that has the packed store."""
    monkeypatch.setattr(web, "FIRST_PAUSE", 0.0)
    site = FileServer(packed)
    with serving(site):
        yield site


def test_few_files_hold_the_store_and_unpack_to_the_same_bytes(store: Path, packed: Path, tmp_path: Path) -> None:
    built = contents(store)
    assert 3 < len(contents(packed)) < len(built) / 5
    fetched: list[int] = []
    assert copy_objects(open_objects(str(packed)), open_objects(str(tmp_path)), advance=fetched.append)
    assert contents(tmp_path) == built
    assert not (tmp_path / "plan").exists()
    assert sum(fetched) == bytes_of(open_objects(str(store))) == bytes_of(open_objects(str(packed)))


def test_packing_again_gives_the_same_files_and_removes_others(store: Path, packed: Path, tmp_path: Path) -> None:
    pack_objects(open_objects(str(store)), tmp_path, pack_bytes=1)
    many = contents(tmp_path)
    names = pack_objects(open_objects(str(store)), tmp_path, pack_bytes=10_000)
    assert contents(tmp_path) == contents(packed)
    assert sorted(names) == sorted(contents(packed))
    assert len(many) > len(names)


def test_a_packed_directory_reads_as_the_store_does(store: Path, packed: Path) -> None:
    original, shared = TeacherStore.open(str(store)), TeacherStore.open(str(packed))
    assert shared.views == original.views
    assert shared.info.fingerprint == original.info.fingerprint
    rows, same = (opened.read([7, 0, 29], "fewshot", 20) for opened in (shared, original))
    np.testing.assert_array_equal(rows.logits, same.logits)
    assert verify(str(packed)) == []


def test_one_view_alone(store: Path, tmp_path: Path) -> None:
    objects = open_objects(str(store))
    pack_objects(objects, tmp_path / "packed", views=["zeroshot"])
    assert TeacherStore.open(str(tmp_path / "packed")).views == ("zeroshot",)
    assert bytes_of(objects, ["zeroshot"]) == bytes_of(open_objects(str(tmp_path / "packed")))


def test_at_most_a_thousand_files_for_a_hundred_million_tokens(store: Path, packed: Path) -> None:
    """A pack closes after `PACK_BYTES`: what a token may take, twenty times over what K=256 takes in `compact`."""
    tokens, bytes_per_token = 100_000_000, 20 * 273.1
    assert tokens * bytes_per_token / PACK_BYTES < 1000 / 1.9
    # of a real store: full packs but for the last of each view and the base's
    sizes = [path.stat().st_size for path in (packed / "packs").iterdir()]
    assert len(sizes) <= bytes_of(open_objects(str(store))) / 10_000 + 3
    assert sum(size < 10_000 for size in sizes) <= 3


def test_a_web_server_gives_what_the_disk_does(store: Path, site: FileServer) -> None:
    original, served = TeacherStore.open(str(store)), open_store(site.url)
    rows, same = (opened.read([3], "fewshot", 16) for opened in (served, original))
    np.testing.assert_array_equal(rows.token_ids, same.token_ids)
    assert site.counted()[INDEX_NAME] == 1
    assert all(wanted for path, wanted in site.requests if path != INDEX_NAME)  # never a whole pack
    assert verify(site.url) == []


def test_the_first_ranks_of_a_shard_are_one_request_and_few_bytes(site: FileServer) -> None:
    served = open_store(site.url)
    served.view_attributes("fewshot")
    asked = []
    for top_k in (16, 40):
        before = len(site.requests)
        served.read_shard("fewshot", 1, top_k)
        (_, manifest), (_, part) = site.requests[before:]
        first, last = map(int, part.removeprefix("bytes=").split("-"))
        asked.append(last - first)
    assert manifest != part
    assert asked[0] < asked[1]


def test_a_server_that_fails_for_a_moment_is_asked_again(site: FileServer) -> None:
    site.statuses = [500, 503, 429, 502]
    assert open_store(site.url).views == ("fewshot", "zeroshot")


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        ([500] * 5, r"logitbank\.json: the server answered HTTP 500, 5 times; try again later"),
        ([403], r"logitbank\.json: access denied \(HTTP 403\); log in, or ask its owner"),
        ([418], r"logitbank\.json: expected HTTP 200, got 418; check the URL"),
        ([404], r"no logitbank\.json there; expected a store packed by logitbank push"),
    ],
)
def test_what_a_server_refuses_is_one_line(site: FileServer, statuses: list[int], message: str) -> None:
    site.statuses = statuses
    with pytest.raises(StoreError, match=message) as caught:
        open_store(site.url)
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer(site: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    monkeypatch.setattr(web, "ATTEMPTS", 2)
    site.pause = 1.0
    with pytest.raises(StoreError, match=r"no answer in 0\.2 s, 2 times"):
        open_store(site.url)


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_PAUSE", 0.0)
    with pytest.raises(StoreError, match=r"--store http://127\.0\.0\.1:1/store: logitbank\.json: .*, 5 times"):
        open_store("http://127.0.0.1:1/store")


def test_a_body_that_ends_early_is_an_error(site: FileServer) -> None:
    served = open_store(site.url)
    site.cut = 7
    with pytest.raises(StoreError, match=r"packs/fewshot-.*, 5 times"):
        served.read([0], "fewshot")


def test_a_server_without_ranges_serves_small_packs_only(
    store: Path, site: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.ranges = False
    rows, same = (TeacherStore.open(url).read([4], "zeroshot") for url in (site.url, str(store)))
    np.testing.assert_array_equal(rows.logits, same.logits)
    monkeypatch.setattr(web, "WHOLE_FILE", 5_000)
    with pytest.raises(StoreError, match="the server ignores Range, and sends whole files of"):
        open_store(site.url)


def test_damage_on_the_way_is_found(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for key in contents(packed):
        (copy / key).parent.mkdir(parents=True, exist_ok=True)
        (copy / key).write_bytes((packed / key).read_bytes())
    pack = copy / "packs/fewshot-00000.pack"
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="damaged"):
        copy_objects(open_objects(str(copy)), open_objects(str(tmp_path / "target")))
    pack.write_bytes(data[:-9])
    with serving(site := FileServer(copy)):
        assert any("expected" in problem for problem in verify(site.url))
        pack.unlink()
        assert "packs/fewshot-00000.pack: missing, although logitbank.json lists it" in verify(site.url)
    (copy / INDEX_NAME).write_bytes((copy / INDEX_NAME).read_bytes().replace(b"zeroshot", b"zer0shot"))
    with pytest.raises(CorruptStoreError, match=r"logitbank\.json: damaged"):
        open_store(copy)


def test_nothing_is_packed_whose_hash_is_not_the_manifests(tmp_path: Path) -> None:
    """Every read checks the CRC; who passes a store on checks the SHA-256 too."""
    stores.build(str(tmp_path / "store"), EXAMPLES[:9], **LAYOUT)
    objects = open_objects(str(tmp_path / "store"))
    entries, details = read_manifest(objects, BASE_KEY)
    entries["zarr.json"] = replace(entries["zarr.json"], sha256="0" * 64)
    write_manifest(objects, BASE_KEY, entries, details)
    with pytest.raises(CorruptStoreError, match=r"zarr\.json .*damaged \(SHA-256 differs"):
        pack_objects(objects, tmp_path / "packed")
    assert not (tmp_path / "packed" / INDEX_NAME).exists()


def test_a_packed_store_is_not_built_on(packed: Path) -> None:
    with pytest.raises(StoreError, match="a packed store is read-only; unpack it into a directory with logitbank pull"):
        stores.build(str(packed), EXAMPLES, **LAYOUT)


def test_an_interrupted_copy_goes_on_with_what_is_missing(packed: Path, store: Path, tmp_path: Path) -> None:
    source, target = open_objects(str(packed)), open_objects(str(tmp_path))
    done = []

    def stop(size: int) -> None:
        done.append(size)
        if sum(done) > 60_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_objects(source, target, advance=stop)
    again = copy_objects(source, target)
    assert 0 < again < bytes_of(source) - 50_000
    assert contents(tmp_path) == contents(store)
    assert copy_objects(source, target) == 0


def test_a_copy_takes_whole_packs_in_few_requests(site: FileServer, tmp_path: Path) -> None:
    source = open_objects(site.url)
    asked = len(site.requests)
    copy_objects(source, open_objects(str(tmp_path)))
    manifests = list(source.sizes("manifest"))
    packs = list((site.folder / "packs").iterdir())
    assert len(site.requests) - asked == len(manifests) + len(packs)


def test_another_store_is_not_copied_over(packed: Path, tmp_path: Path) -> None:
    stores.build(str(tmp_path), EXAMPLES[:9], **LAYOUT)
    with pytest.raises(StoreError, match=r"its manifest/base\.json belongs to a different store than"):
        copy_objects(open_objects(str(packed)), open_objects(str(tmp_path)))
