"""Packing comparisons: shares of the room, cuts that show, answers that never vanish, and both orders alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from logitbank.preference import PackedPair, Pair
from logitbank.tasks import TaskError
from logitbank.tasks.preference import PairPacker, load_pairs
from logitbank.tasks.prompts import PromptEncoder
from tests import tiny
from tests.tasks.comparisons import pair, settings

BYTES = tiny.byte_tokenizer(bos=True)
CHAT = tiny.chat_tokenizer()
CLOSING = "\n\nWhich answer is better?"
HEADS = {"classifier": BYTES, "letters": CHAT}


def text_of(packed: PackedPair, tokenizer: Any = BYTES) -> str:
    return str(tokenizer.decode(packed.ids, skip_special_tokens=False))


def answers_of(packed: PackedPair, tokenizer: Any = BYTES) -> tuple[str, str]:
    spans = (packed.response_a, packed.response_b)
    a, b = (tokenizer.decode(packed.ids[span.start : span.stop]) for span in spans)
    return a, b


def lengths(packed: PackedPair) -> tuple[int, int]:
    return packed.response_a.length, packed.response_b.length


def turns(*texts: str) -> tuple[str, ...]:
    return texts


def several(prompt: tuple[str, ...], a: tuple[str, ...], b: tuple[str, ...]) -> Pair:
    return Pair("preference/und/train/1", prompt, a, b)


def test_what_a_classifier_reads() -> None:
    packed = PairPacker(BYTES, max_tokens=200).pack(pair("Which city?", "Bern", "Oslo"))
    assert text_of(packed) == f"<s>Prompt:\nWhich city?\n\nAnswer A:\nBern\n\nAnswer B:\nOslo{CLOSING}"
    assert answers_of(packed) == ("Bern", "Oslo")
    assert (packed.cut, packed.ids.dtype) == (0, np.int32)


def test_what_a_language_model_reads_ends_where_the_letter_stands() -> None:
    packed = PairPacker(CHAT, max_tokens=500, head="letters").pack(pair("Which city?", "Bern", "Oslo"))
    question = "Which answer is better? Reply with one letter: A, B, or C if they are equally good."
    messages = [
        {
            "role": "system",
            "content": "You compare two answers to the same prompt and say which of them people prefer.",
        },
        {"role": "user", "content": f"Prompt:\nWhich city?\n\nAnswer A:\nBern\n\nAnswer B:\nOslo\n\n{question}"},
    ]
    expected = CHAT.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert packed.ids.tolist() == expected
    assert answers_of(packed, CHAT) == ("Bern", "Oslo")
    plain = PairPacker(BYTES, max_tokens=500, head="letters").pack(pair("Which city?", "Bern", "Oslo"))
    assert text_of(plain) == f"<s>{messages[0]['content']}\n\n{messages[1]['content']}\n"


def test_special_tokens_of_an_encoder_frame_the_text() -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "Bern", "Oslo", "Answer", "Which", "Prompt"]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]")
    assert tokenizer.eos_token is None
    assert PromptEncoder(tokenizer).end_of_turn_id == 3, "evaluation studies the tokenizer of every model"
    packed = PairPacker(tokenizer, max_tokens=60).pack(pair("a a", "Bern [SEP]", "Oslo"))
    assert packed.ids[[0, -1]].tolist() == [2, 3]
    assert 3 not in packed.ids[:-1], "what data spell out is text"
    assert packed.ids[packed.response_b.start :].tolist()[:1] == [6]


def test_room_is_shared_one_to_two_to_two() -> None:
    packer = PairPacker(BYTES, max_tokens=600)
    room = 600 - len(packer.pack(pair("", "", "")).ids) + 3 * len("(empty)")
    packed = packer.pack(pair("p" * 900, "a" * 900, "b" * 900))
    assert lengths(packed) == (room * 2 // 5, room * 2 // 5)
    assert text_of(packed).count("p" * 50) == (room // 5 - len(" [...]")) // 50
    assert packed.cut == 2700 - (len(packed.ids) - (600 - room)) + 3 * len(" [...]")
    assert 597 < len(packed.ids) <= 600


def test_room_that_is_not_needed_is_handed_on() -> None:
    packer = PairPacker(BYTES, max_tokens=600)
    room = 600 - len(packer.pack(pair("", "", "")).ids) + 3 * len("(empty)")
    assert lengths(packer.pack(pair("pp", "a" * 900, "b" * 900)))[0] == (room - 2) // 2
    assert lengths(packer.pack(pair("p" * 900, "a", "b" * 900))) == (1, (room - 1) * 2 // 3)
    long_prompt = packer.pack(pair("p" * 900, "a", "b"))
    assert lengths(long_prompt) == (1, 1)
    assert text_of(long_prompt).count("p") >= room - 2 - len(" [...]")


def test_a_cut_text_keeps_its_beginning_and_shows_the_cut() -> None:
    packer = PairPacker(BYTES, max_tokens=200)
    packed = packer.pack(pair("Which?", "first " + "a" * 300 + " last", "Oslo"))
    answer, other = answers_of(packed)
    assert answer.startswith("first aaa")
    assert answer.endswith("a [...]")
    assert other == "Oslo"
    assert len(packed.ids) == 200
    assert packed.cut == len("first " + "a" * 300 + " last") - len(answer.removesuffix(" [...]"))


def test_later_turns_are_kept_first_or_earlier_ones_if_asked() -> None:
    talk = several(
        turns("one", "two", "three"), turns("a" * 90, "b" * 90, "c" * 20), turns("x" * 90, "y" * 90, "z" * 20)
    )
    whole = text_of(PairPacker(BYTES, max_tokens=900).pack(talk))
    assert "Prompt:\nTurn 1:\none\n\nTurn 2:\ntwo\n\nTurn 3:\nthree\n\nAnswer A:\nTurn 1:\naaa" in whole
    last, first = (PairPacker(BYTES, max_tokens=330, keep_turns=kept).pack(talk) for kept in ("last", "first"))
    answer = answers_of(last)[0]
    assert answer.startswith("\n\nTurn 2:\nbbb")
    assert answer.endswith("b [...]\n\nTurn 3:\n" + "c" * 20), "the cut stands where something is missing"
    answer = answers_of(first)[0]
    assert answer.startswith("Turn 1:\n" + "a" * 90 + "\n\nTurn 2:\nb")
    assert answer.endswith("b [...]")
    dropped = several(turns("one", "two"), turns("a" * 90, "b" * 58), turns("x" * 90, "y" * 58))
    assert answers_of(PairPacker(BYTES, max_tokens=247).pack(dropped))[0] == " [...]\n\nTurn 2:\n" + "b" * 58


def test_a_turn_without_text_takes_no_room_from_those_with_it() -> None:
    talk = several(turns("one", "two"), turns("a" * 400, ""), turns("", "y" * 400))
    for kept in ("last", "first"):
        packed = PairPacker(BYTES, max_tokens=200, keep_turns=kept).pack(talk)
        a, b = answers_of(packed)
        assert a.startswith("Turn 1:\naaa")
        assert b.startswith("\n\nTurn 2:\nyyy")


def test_an_answer_without_text_says_so() -> None:
    packed = PairPacker(BYTES, max_tokens=200).pack(several(turns("p", "q"), turns("", " \n"), turns("x", "y")))
    assert answers_of(packed) == ("(empty)", "Turn 1:\nx\n\nTurn 2:\ny")


def test_control_tokens_in_data_stay_text() -> None:
    for head, tokenizer in HEADS.items():
        packer = PairPacker(tokenizer, max_tokens=600, head=head)
        plain, spelled = packer.pack(pair("p", "x", "y")), packer.pack(pair("<start><end>", "<s></s>", "<end>"))
        special = set(tokenizer.all_special_ids)
        assert sum(i in special for i in spelled.ids) == sum(i in special for i in plain.ids)
        assert answers_of(spelled, tokenizer) == ("<s></s>", "<end>")


@pytest.mark.parametrize("head", list(HEADS))
def test_too_small_a_length_is_one_line_and_the_least_is_enough(head: str) -> None:
    least = PairPacker(HEADS[head], max_tokens=1000, head=head).least_tokens
    with pytest.raises(TaskError) as caught:
        PairPacker(HEADS[head], max_tokens=least - 1, head=head)
    assert str(caught.value).startswith(f"max_tokens: expected at least {least} with this tokenizer (the text around")
    assert str(caught.value).endswith(f"), got {least - 1}")
    packed = PairPacker(HEADS[head], max_tokens=least, head=head).pack(pair("p" * 99, "a" * 99, "b" * 99))
    assert [answer[0] for answer in answers_of(packed, HEADS[head])] == ["a", "b"]
    talk = several(turns(*"pqr"), turns("a" * 50, "b" * 50, "c" * 50), turns("x", "y", "z" * 50))
    packed = PairPacker(HEADS[head], max_tokens=least, head=head).pack(talk)
    assert [answer[0] for answer in answers_of(packed, HEADS[head])] == ["c", "z"], "text comes before its label"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    count = draw(st.integers(1, 3))
    size = st.lists(texts, min_size=count, max_size=count).map(tuple)
    return several(draw(size), draw(size), draw(size))


@given(pairs(), st.integers(0, 400), st.sampled_from(["last", "first"]), st.sampled_from(list(HEADS)))
def test_what_holds_of_every_pair_and_length(one: Pair, more: int, keep_turns: str, head: str) -> None:
    tokenizer = HEADS[head]
    unlimited = PairPacker(tokenizer, max_tokens=10_000, keep_turns=keep_turns, head=head)
    limit = unlimited.least_tokens + more
    packer = PairPacker(tokenizer, max_tokens=limit, keep_turns=keep_turns, head=head)
    packed, whole = packer.pack(one), unlimited.pack(one)
    assert len(packed.ids) <= limit
    assert packed.response_a.length > 0 < packed.response_b.length
    assert packed.response_a.stop < packed.response_b.start < packed.response_b.stop < len(packed.ids)
    assert whole.cut == 0
    assert (packed.cut == 0) == (len(whole.ids) <= limit) == bool(np.array_equal(packed.ids, whole.ids))
    if packed.cut:
        assert len(one.prompt) > 1 or len(packed.ids) >= limit - 2, "room is left behind a cut"
        assert " [...]" in text_of(packed, tokenizer)
    behind = len(whole.ids) - whole.response_b.stop
    assert packed.ids[-behind:].tolist() == whole.ids[-behind:].tolist()

    swapped = packer.pack(one.swapped())
    a, b = (packed.ids[span.start : span.stop].tolist() for span in (packed.response_a, packed.response_b))
    assert swapped.ids[swapped.response_a.start : swapped.response_a.stop].tolist() == b
    assert swapped.ids[swapped.response_b.start : swapped.response_b.stop].tolist() == a
    assert (len(swapped.ids), swapped.cut) == (len(packed.ids), packed.cut)
    assert swapped.ids[: packed.response_a.start].tolist() == packed.ids[: packed.response_a.start].tolist()


def test_many_at_a_time_are_packed_as_one_by_one() -> None:
    many = [pair(f"p {n}" * (n % 7), f"a {n} <s>" * (n % 5), "b" * n) for n in range(600)]
    packer = PairPacker(BYTES, max_tokens=150)
    for together, one in zip(packer.pack_all(iter(many)), many, strict=True):
        alone = packer.pack(one)
        assert together.ids.tolist() == alone.ids.tolist()
        assert together[1:] == alone[1:]


@pytest.mark.parametrize("name", ["qwen3", "llama-3.2"])
def test_real_rows_with_real_tokenizers(name: str, shared: Path, real_tokenizer: Callable[..., Any]) -> None:
    rows = load_pairs("test", settings(test=str(shared / "preference" / "test.csv")))[:150]
    tokenizer = real_tokenizer(name)
    for head in HEADS:
        packer = PairPacker(tokenizer, max_tokens=320, head=head)
        packed = list(packer.pack_all(rows))
        assert max(len(one.ids) for one in packed) <= 320
        assert 0.1 < np.mean([one.cut > 0 for one in packed]) < 0.6
        for one, row in zip(packed, rows, strict=True):
            for span, answer in ((one.response_a, row.response_a[0]), (one.response_b, row.response_b[0])):
                shown = tokenizer.decode(one.ids[span.start : span.stop])
                assert answer.startswith(shown.removesuffix(" [...]").rstrip("\ufffd"))
        ends = {tuple(one.ids[one.response_b.stop :].tolist()) for one in packed}
        assert len(ends) == 1
        end = tokenizer.decode(ends.pop())
        assert end == CLOSING if head == "classifier" else end.startswith(f"{CLOSING} Reply with one letter")
