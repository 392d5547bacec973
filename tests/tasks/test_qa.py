"""QA: F1 and exact match by the two protocols, against definitions written out another way."""

from __future__ import annotations

import re
import string
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitbank.tasks import TASKS, DataSettings, TaskError
from logitbank.tasks.data import load_examples
from logitbank.tasks.qa import QA
from tests.tasks.scores import score as score_outputs

TASK = QA()
ARTICLES = {
    "en": {"a", "an", "the"},
    "es": {"un", "una", "unos", "unas", "el", "la", "los", "las"},
    "de": {"ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des"},
    "vi": {"của", "là", "cái", "chiếc", "những"},
    "hi": set(),
    "zh": set(),
    "ar": set(),
}


def tokens_by_definition(text: str, language: str, protocol: str) -> list[str]:
    """Both protocols as a walk over characters: drop punctuation, cut into words, drop articles."""
    kept = ""
    for character in text.lower():
        punctuation = character in string.punctuation
        if protocol == "mlqa":
            punctuation = punctuation or unicodedata.category(character)[0] == "P"
        kept += "" if punctuation else character
    if protocol == "mlqa" and language == "ar":
        kept = " ".join(kept.split("ال"))
    articles = ARTICLES["en"] if protocol == "squad" else ARTICLES[language]
    cut = "".join(" " if word in articles else word for word in re.split(r"(\w+)", kept))
    tokens: list[str] = []
    for chunk in cut.split():
        word = ""
        for character in chunk:
            if protocol == "mlqa" and language == "zh" and 0x4E00 <= ord(character) <= 0x9FA5:
                tokens += [word, character] if word else [character]
                word = ""
            else:
                word += character
        tokens += [word] if word else []
    return tokens


def scores_by_definition(output: str, golds: list[str], language: str, protocol: str) -> tuple[float, float]:
    f1 = exact = 0.0
    predicted = tokens_by_definition(output, language, protocol)
    for gold in golds:
        expected = tokens_by_definition(gold, language, protocol)
        pool, shared = list(expected), 0
        for token in predicted:
            if token in pool:
                pool.remove(token)
                shared += 1
        if shared:
            f1 = max(f1, 2 * shared / (len(predicted) + len(expected)))
        exact = max(exact, float(predicted == expected))
    return f1, exact


LETTERS = "aAtThHeE ,.-_$+^|'\"«»“”。，、！？·।॥‘’—…€£¿¡؟؛\u200f\u200e\u00a0\u3000\n1ßéñाि的中文龥龦㐀ال"
WORDS = ["the ", "El ", " un", "die ", " des.", "của ", "الكتاب ", "北京 ", "Haus ", "a-b ", "و"]
TEXTS = st.lists(st.one_of(st.sampled_from(list(LETTERS)), st.sampled_from(WORDS)), max_size=12).map("".join)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(sorted(ARTICLES)))
def test_both_protocols_equal_their_definitions(output: str, golds: list[str], language: str) -> None:
    for protocol in ("mlqa", "squad"):
        score = score_outputs(TASK, [output], [golds], language, protocol=protocol)
        f1, exact = scores_by_definition(output, golds, language, protocol)
        assert score["f1"] == pytest.approx(f1)
        assert score["exact_match"] == exact


@pytest.mark.parametrize(
    ("language", "protocol", "output", "gold", "f1", "exact_match"),
    [
        ("en", "squad", "The Eiffel Tower!", "eiffel tower", 1, 1),
        ("en", "squad", "“Paris”", "Paris", 0, 0),  # SQuAD keeps quotation marks beyond ASCII
        ("en", "mlqa", "“Paris”", "Paris", 1, 1),
        ("en", "squad", "1402–1405", "14021405", 0, 0),
        ("en", "mlqa", "1402–1405", "14021405", 1, 1),
        ("es", "mlqa", "La casa", "casa", 1, 1),
        ("es", "squad", "La casa", "casa", 2 / 3, 0),
        ("es", "mlqa", "¿el rey?", "un rey", 1, 1),
        ("de", "mlqa", "in der Stadt", "in Stadt", 1, 1),
        ("de", "mlqa", "the Stadt", "Stadt", 2 / 3, 0),
        ("hi", "mlqa", "अफ्रीका।", "अफ्रीका", 1, 1),
        ("zh", "mlqa", "北京市", "北京", 0.8, 0),
        ("zh", "squad", "北京市", "北京", 0, 0),
        ("zh", "mlqa", "Mac OS X和Windows", "Mac OS X 和 Windows。", 1, 1),
        ("vi", "mlqa", "của Nam", "nam", 1, 1),
        ("ar", "mlqa", "الكتاب", "كتاب", 1, 1),
        ("ar", "mlqa", "\u200fكتاب", "كتاب", 0, 0),  # a right-to-left mark is no punctuation
        ("fr", "squad", "le roi", "roi", 2 / 3, 0),
        ("en", "mlqa", "", "x", 0, 0),
        ("en", "mlqa", "the", "", 0, 1),  # equal once normalised, but no token is shared
    ],
)
def test_by_hand(language: str, protocol: str, output: str, gold: str, f1: float, exact_match: float) -> None:
    score = score_outputs(TASK, [output], [[gold]], language, protocol=protocol)
    assert score["f1"] == pytest.approx(f1)
    assert score["exact_match"] == exact_match


@pytest.mark.parametrize(
    ("language", "article"), [(code, word) for code in ARTICLES for word in sorted(ARTICLES[code])]
)
def test_every_article_goes(language: str, article: str) -> None:
    assert score_outputs(TASK, [f"x {article} y"], [["X Y"]], language)["exact_match"] == 1
    assert score_outputs(TASK, [f"x {article}q y"], [["X Y"]], language)["exact_match"] == 0


@pytest.mark.parametrize(("character", "f1"), [("一", 2 / 3), ("龥", 2 / 3), ("龦", 0), ("㐀", 0), ("ア", 0)])
def test_only_common_ideographs_are_tokens_of_their_own(character: str, f1: float) -> None:
    assert score_outputs(TASK, [character * 2], [[character]], "zh")["f1"] == pytest.approx(f1)


def test_the_best_gold_answer_counts_and_mlqa_is_the_default() -> None:
    score = score_outputs(TASK, ["“red car”", ""], [["blue", "a red car"], ["x"]], "en")
    assert score == {"f1": 0.5, "exact_match": 0.5, "parse_failure": 0.5}
    assert score_outputs(TASK, ["x"], [[]], "en")["exact_match"] == 0
    assert score_outputs(TASK, ["car"], ["car"], "en")["f1"] == 1  # a single gold answer need be no list


def test_undefined_protocols_and_languages_are_refused() -> None:
    with pytest.raises(TaskError, match="expected one of mlqa, squad, got 'xquad'"):
        score_outputs(TASK, ["a"], [["a"]], "en", protocol="xquad")
    with pytest.raises(TaskError, match=r"MLQA evaluation is defined for .* not for 'fr'"):
        score_outputs(TASK, ["a"], [["a"]], "fr")


def test_xquad_is_scored_by_squad_and_has_ids_of_its_own(shared: Path) -> None:
    assert TASKS["qa"].sources["xquad"].protocol == "squad"
    mirror = str(shared / "hub")
    mlqa = load_examples("qa", "test", "hi", DataSettings(mirror=mirror), limit=30)
    xquad = load_examples("qa", "test", "hi", DataSettings(mirror=mirror, sources={"qa": "xquad"}), limit=30)
    assert not {e.example_id for e in mlqa} & {e.example_id for e in xquad}
    validation = [
        load_examples("qa", "validation", "hi", DataSettings(mirror=mirror, sources={"qa": s}))
        for s in ("mlqa", "xquad")
    ]
    assert validation[0] == validation[1]
