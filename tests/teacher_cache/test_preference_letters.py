"""Letters: what a language model as it is says of A, B and C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from logitbank.preference import LETTERS, Pair, SeenPrompts, prompt_keys
from logitbank.storage import LabelStore
from logitbank.tasks.preference import PairPacker
from logitbank.teacher_cache.build_command import main
from tests import tiny
from tests.teacher_cache import preferences
from tests.teacher_cache.preferences import FOLDS, prepared_of, save_teacher


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return preferences.write_rows(tmp_path_factory.mktemp("comparisons"))


def save_qwen(path: Path, tokenizer: Any) -> str:
    """A random model with a real tokenizer and its template; its rows are more than the tokenizer's tokens."""
    rows = len(tokenizer) + 7
    return str(tiny.save_model(path, tokenizer, rows=rows, initializer_range=0.2, max_position_embeddings=4096))


def one_token_at_a_time(model: Any, ids: list[int]) -> torch.Tensor:
    """All logits after the last token, (V,) float64; every token is read on its own."""
    cache = transformers.DynamicCache(config=model.config)
    for token in ids:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
    return out.logits[0, -1]


@pytest.mark.numeric
def test_one_forward_pass_says_what_a_loop_over_tokens_says(
    rows: list[str], real_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    """Float32 against float64: rounding of 2^-24 in each of some hundred operations a logit, which are about 1."""
    tokenizer = real_tokenizer("qwen3")
    model = save_qwen(tmp_path / "qwen", tokenizer)
    options = [f"model.name={model}", *rows, "data.max_teacher_tokens=120"]
    main(["--store", str(tmp_path / "s"), "--view", "zero", *options])
    store = LabelStore.open(str(tmp_path / "s"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    packer = PairPacker(tokenizer, max_tokens=120, head="letters")
    letters = [tokenizer.encode(letter)[0] for letter in LETTERS]
    found = store.logits("zero")
    chosen = [0, len(store.train) - 1]
    for row in chosen:
        ids = packer.pack(store.train.pair(row)).ids.tolist()
        expected = one_token_at_a_time(reference, ids)[letters].numpy()
        assert found[row] == pytest.approx(expected, abs=2e-5)
    assert np.ptp(found[chosen], axis=0).min() > 1e-3  # they tell comparisons apart


def test_the_letter_is_what_comes_after_the_prompt(real_tokenizer: Callable[..., Any]) -> None:
    """The packed pair and a letter are what the template writes of the question and that answer."""
    tokenizer = real_tokenizer("qwen3")
    pair = Pair("preference/und/train/1", ("Frage?",), ("Ja.",), ("Nein.",))
    ids = PairPacker(tokenizer, max_tokens=400, head="letters").pack(pair).ids.tolist()
    text, turn = tokenizer.decode(ids), "<|im_start|>assistant"
    assert text.index("Frage?") < text.index("Ja.") < text.index("Nein.") < text.index("A, B, or C") < text.index(turn)
    ending = tokenizer.encode(text[text.index(turn) :] + "B")
    assert [*ids, *tokenizer.encode("B")][-len(ending) :] == ending  # the letter does not melt into what precedes it


def test_a_model_as_it_is_scores_all_folds_and_proves_nothing(
    rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`teacher.model` is asked where it is named, whatever the student is."""
    student, teacher = (str(preferences.save_base(tmp_path / name)) for name in ("student", "teacher"))
    build = ["--store", str(tmp_path / "s"), "--view", "zero", f"model.name={student}", *rows]
    main([*build, f"teacher.model={teacher}"])
    assert "zero complete" in (said := capsys.readouterr().out)
    assert "cannot be proven out of fold" in said
    store = LabelStore.open(str(tmp_path / "s"))
    assert {(shard.model, shard.proven, shard.held_out_fold) for shard in store.scorers("zero")} == {
        (teacher, False, None)
    }
    identity = store.view_attributes("zero")["identity"]
    assert (identity["head"], identity["max_tokens"], identity["model"]) == ("letters", 420, "teacher")


def test_a_teacher_trained_to_say_letters_is_read_by_them(
    rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"model.name={preferences.save_base(tmp_path / 'base')}", *rows, "data.max_student_tokens=420"]
    teacher = save_teacher(tmp_path / "T", options, held_out=1, head="letters")
    main(["--store", str(tmp_path / "s"), "--view", "llama", "--checkpoint", str(teacher), *options])
    assert f"{teacher} (letters)" in capsys.readouterr().out
    (shard,) = LabelStore.open(str(tmp_path / "s")).scorers("llama")
    assert (shard.fold, shard.proven) == (1, True)


def test_a_base_that_saw_prompts_of_the_store_is_refused(
    rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = preferences.save_base(tmp_path / "base")
    SeenPrompts.of(prompt_keys(prepared_of([*rows, f"model.name={base}"]).train[:1])).write(base)
    with pytest.raises(SystemExit):
        main(["--store", str(tmp_path / "s"), "--view", "zero", f"model.name={base}", *rows])
    assert f"{base} was trained on 1 prompt of fold 0" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_letters_of_several_tokens_are_shown(
    rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = preferences.save_base(tmp_path / "base", split="A")
    with pytest.raises(SystemExit):
        main(["--store", str(tmp_path / "s"), "--view", "zero", f"model.name={base}", *rows])
    assert "but A is 'x' 'y'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_no_pair_is_longer_than_the_model_reads(
    rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny.chat_tokenizer()
    base = tiny.save_model(tmp_path / "base", tokenizer, rows=len(tokenizer), max_position_embeddings=500)
    build = ["--store", str(tmp_path / "s"), "--view", "zero", f"model.name={base}", *rows]
    with pytest.raises(SystemExit):
        main([*build, "data.max_teacher_tokens=501"])
    assert "data.max_teacher_tokens: expected at most 500" in capsys.readouterr().err
    main([*build, "data.max_teacher_tokens=null", "--dry-run"])
    assert "at most 500 tokens" in capsys.readouterr().out


def test_a_classifier_is_no_model_to_ask_for_letters(
    rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"model.name={preferences.save_base(tmp_path / 'base')}", *rows]
    teacher = save_teacher(tmp_path / "T", options, held_out=1)
    with pytest.raises(SystemExit):
        main(["--store", str(tmp_path / "s"), "--view", "zero", f"model.name={teacher}", *rows])
    assert "is a trained classifier; give it as --checkpoint" in capsys.readouterr().err


def test_the_model_that_fits_is_asked(rows: list[str], tmp_path: Path) -> None:
    large = tiny.save_model(
        tmp_path / "large", tiny.chat_tokenizer(), rows=300, hidden_size=256, intermediate_size=512, num_hidden_layers=4
    )
    small = preferences.save_base(tmp_path / "small")
    options = [f"model.name={large}", f"model.fallbacks=[{small}]", *rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logitbank.models.fallbacks.free_memory", lambda device: 5_000_000)
        main(["--store", str(tmp_path / "s"), "--view", "zero", *options, "teacher.batch_tokens=512"])
    store = LabelStore.open(str(tmp_path / "s"))
    assert {shard.model for shard in store.scorers("zero")} == {str(small)}
    assert len(store.scorers("zero")) == FOLDS
