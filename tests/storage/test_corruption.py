"""No damage to any object of a store is ever returned as data."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from logitbank.storage import CorruptStoreError, IncompleteStoreError, StoreError, TeacherStore, verify
from logitbank.storage.objects import BASE_KEY
from tests.storage import stores

EXAMPLES = stores.records(12)
VALIDATION = stores.records(3, seed=1, prefix="validation")
LAYOUT: dict[str, Any] = {"views": ("zeroshot",), "shard_tokens": 48, "chunk_tokens": 16, "top_k": 20}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store: two shards, two blocks of ranks, a validation set."""
    path = tmp_path_factory.mktemp("pristine") / "store"
    stores.build(str(path), EXAMPLES, validation=VALIDATION, **LAYOUT)
    return path


def everything(url: str) -> list[bytes]:
    """All that a reader can get out of a store."""
    store = TeacherStore.open(url)
    seen = [repr(store.info).encode(), "\n".join([*store.examples.example_id, *store.validation.example_id]).encode()]
    for table in (store.examples, store.validation):
        seen += [table.task.tobytes(), table.language.tobytes(), table.answer_start.tobytes()]
        for i in range(len(table)):
            seen += [table.sequence(i).ids.tobytes(), table.answer_ids(i).tobytes()]
    store.require_view("zeroshot")
    seen.append(repr(store.view_attributes("zeroshot")).encode())
    for example in range(len(store.examples)):
        seen += single(store, example)
    return seen


def single(store: TeacherStore, example: int) -> list[bytes]:
    """One example's teacher rows."""
    rows = store.read([example], "zeroshot")
    return [
        array.tobytes()
        for array in (rows.token_ids, rows.logits, rows.logsumexp, rows.entropy, rows.gold_logit, rows.gold_rank)
    ]


def flip(path: Path) -> None:
    """Flip one bit, chosen by the path's name."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(list("/".join(path.parts[-4:]).encode()))
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Cut the last byte off."""
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {"flipped bit": flip, "truncated": truncate, "missing": Path.unlink}


def objects_of(store: Path) -> list[str]:
    """Keys of all objects; lock files hold nothing."""
    keys = [path.relative_to(store).as_posix() for path in sorted(store.rglob("*")) if path.is_file()]
    return [key for key in keys if not key.startswith(".lock")]


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_every_damaged_object_is_named_and_never_read(pristine: Path, tmp_path: Path, damage: str) -> None:
    sound = everything(str(pristine))
    assert verify(str(pristine)) == []
    keys = objects_of(pristine)
    assert {key.split("/")[0] for key in keys} == {
        *("examples", "manifest", "teachers", "validation", "vocabulary", "zarr.json")
    }
    store = Path(shutil.copytree(pristine, tmp_path / "store"))
    for key in keys:
        original = (store / key).read_bytes()
        DAMAGE[damage](store / key)
        with pytest.raises(StoreError) as refusal:
            everything(str(store))
        if damage != "missing":
            assert key in str(refusal.value)
        (store / key).write_bytes(original)
    assert everything(str(store)) == sound


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_every_damaged_object_is_found_beside_all_others(pristine: Path, tmp_path: Path, damage: str) -> None:
    store = Path(shutil.copytree(pristine, tmp_path / "store"))
    objects = [key for key in objects_of(store) if not key.startswith("manifest/")]
    for key in objects:
        DAMAGE[damage](store / key)
    problems = verify(str(store))
    assert len(problems) == len(objects)
    for key in objects:
        assert sum(problem.startswith((f"{key}:", f"{key} (")) for problem in problems) == 1, key


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_every_damaged_manifest_is_found(pristine: Path, tmp_path: Path, damage: str) -> None:
    store = Path(shutil.copytree(pristine, tmp_path / "store"))
    manifests = [key for key in objects_of(store) if key.startswith("manifest/")]
    assert len(manifests) == 4
    for key in manifests:
        original = (store / key).read_bytes()
        DAMAGE[damage](store / key)
        problems = verify(str(store))
        if damage != "missing":
            assert any(problem.startswith(key) for problem in problems), key
        elif key == BASE_KEY:
            assert f"{key}: missing" in problems
        else:  # its objects are there, but listed nowhere
            part = {"view.json": "zarr.json", "0.json": "/c/0", "1.json": "/c/1"}[Path(key).name]
            assert any(part in problem and "not listed in any manifest" in problem for problem in problems), key
        (store / key).write_bytes(original)


def test_single_examples_of_a_damaged_shard_are_refused_and_others_still_read(pristine: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(pristine, tmp_path / "store"))
    before = TeacherStore.open(str(store))
    members = before.plan.examples_of(1)
    other = single(before, 0)
    for key in objects_of(store):
        if key.startswith("teachers/zeroshot/") and "/c/1" in key:
            flip(store / key)
    after = TeacherStore.open(str(store))
    assert single(after, 0) == other
    for example in members:
        with pytest.raises(
            CorruptStoreError, match=rf"shard 1, examples {members.start} to {members.stop - 1}"
        ) as error:
            after.read([example], "zeroshot")
    # What the message says to do repairs it.
    mark = re.search(r"delete (\S+) and run the same build-teacher-cache command", str(error.value))
    assert mark is not None
    (store / mark.group(1)).unlink()
    stores.build(str(store), EXAMPLES, validation=VALIDATION, **LAYOUT)
    assert verify(str(store)) == []
    assert everything(str(store)) == everything(str(pristine))


def test_a_missing_mark_means_unfinished_not_zeros(pristine: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(pristine, tmp_path / "store"))
    (store / "manifest/zeroshot/0.json").unlink()
    with pytest.raises(IncompleteStoreError):
        TeacherStore.open(str(store)).read([0], "zeroshot")


@pytest.mark.parametrize("pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"])
def test_plain_zarr_readers_find_flipped_bits_by_the_chunks_own_checksums(
    pristine: Path, tmp_path: Path, pipeline: str
) -> None:
    """Reading inner chunks one by one, without our manifests."""
    if pipeline.startswith("zarrs"):
        pytest.importorskip("zarrs")
    root = Path(shutil.copytree(pristine, tmp_path / "store"))
    rng = np.random.default_rng(0)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        for name, array in zarr.open_group(str(root / "teachers/zeroshot"), mode="r").arrays():
            sound = np.asarray(array[:])
            step = array.chunks[0]
            victims = sorted(path for path in (root / "teachers/zeroshot" / name / "c").rglob("*") if path.is_file())
            for victim in victims[:2]:
                data = victim.read_bytes()
                shard = int(victim.relative_to(root / "teachers/zeroshot" / name / "c").parts[0])
                rows = range(shard * array.shards[0], (shard + 1) * array.shards[0], step)
                for position in rng.choice(len(data), min(len(data), 12), replace=False):
                    damaged = bytearray(data)
                    damaged[position] ^= 1 << int(rng.integers(8))
                    victim.write_bytes(damaged)
                    again = zarr.open_array(str(root / "teachers/zeroshot" / name), mode="r")
                    for start in rows:
                        try:
                            chunk = np.asarray(again[start : start + step])
                        except Exception:  # whatever a foreign reader raises, it is not data
                            continue
                        np.testing.assert_array_equal(
                            chunk, sound[start : start + step], err_msg=f"{name} {victim.name} byte {position}"
                        )
                victim.write_bytes(data)
