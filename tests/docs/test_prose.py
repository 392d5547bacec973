"""Prose reads as a native engineer would write it: phrases that keep coming back, and what says it better.

The pages are checked, and every message, help text, docstring and comment of the code.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, name_of, without_code
from tests.docs.words import MODULES, of_code

INSTEAD = {
    # idioms
    r"\bgo(es|ing)? on (from|where|with)|\bwent on\b|\bcannot go on\b": "resumes, continues",
    r"from where it (is|was)": "resumes",
    r"is found out": "is detected",
    r"\bdearer\b|\bdearest\b": "costs more, costliest",
    r"\bgood minutes\b": "intermittently",
    r"\bin words that\b": "as",
    r"\bmends?\b|\bmended\b": "fix",
    r"\bwithout a word\b": "silently",
    r"\b(shall|thereof|therein|thereby|thereupon|whereby|wherein|whilst|hence|thence|whence)\b": "plain words",
    r"\bso far as\b": "as far as, if",
    r"\bby now\b": "now",
    r"\bany more\b": "no longer",
    r"\bonce more\b": "again",
    r"\bof its own accord\b": "by itself",
    r"\bfor want of\b|\bto be had\b|\bfor ever\b": "lacking, available, always",
    r"\bmeanwhile\b": "in the meantime, while",
    r"\bbegun\b": "started",
    r"\bwhoever\b": "anyone who, people who",
    r"\bas ever\b": "as usual",
    # word order
    r"which of the \w+ it is": "name the thing",
    r"\b(it|they|that|there) (is|are|was|were), (is|are|was|were)\b": "the verb first",
    r"(?<!\bthere )\b(is|are|was|were) no (?!longer|more|less|other\b|doubt|two\b)": "is not a",
    r"\bis another one\b": "differs, is part of",
    r"\b(is|are) (of|for) (\S*tasks=|preferences\b)": "works with",
    r"\bstill to be\b|\b(is|are) to be \w+ed\b": "not ... yet, must be",
    r"\bwhat (there )?is to \w+\b": "what must be, the work",
    r"\btakes? (its|their) turn\b": "name what it does",
    # "where" for "if"
    r"\bNone where\b|\b(null|NaN|empty|False) where (no|none|nothing|nobody)\b": "if",
    r"\bwhere there (is|are) (none|no|one|any|nothing)\b": "if there is",
    r"\bwhere (it|they|one) (is|are) (not|none|missing|unknown|given|known|asked)\b": "if it is",
    r"\bif it has none\b|\bwhere it has none\b": "otherwise",
    # space for order
    r"\b(stands?|lies?) (behind|beside|before|there|in front)\b": "follows, is next to, precedes",
    r"\bone behind the other\b": "end to end",
    r"(?<!\bleaves )(?<!\bleft )(?<!\bleave )\bbehind (it|them|the|each|every|which|other|another)\b": "after",
    # fillers
    r"\bvery\b(?! first)": "nothing",
    r"\bsimply\b|\bof course\b|\bobviously\b": "nothing",
}


def faults(text: str) -> list[str]:
    flat = " ".join(text.split())
    return [
        f"{match[0]!r}: {better}" for phrase, better in INSTEAD.items() for match in re.finditer(phrase, flat, re.I)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_free_of_phrases_that_read_as_translated(page: Path) -> None:
    assert faults(without_code(page.read_text())) == []


def test_messages_help_docstrings_and_comments_are_free_of_them_too() -> None:
    found = [
        f"{words.place}: {fault}" for module in MODULES for words in of_code(module) for fault in faults(words.text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "Which of the two it is, is found out.",
        "The same command goes on where it was.",
        "conflict_parameters: 'a(' is no regular expression",
        "--calibrate: is of tasks=[preference]; leave it out",
        "The folds that are to be scored; None where nobody says.",
        "shards that are still to be written",
        "the line break that stands behind the last answer",
    ],
)
def test_a_translated_sentence_is_found(text: str) -> None:
    assert faults(text)


def test_native_sentences_pass() -> None:
    text = (
        "There is no store at this URL. The run is no longer resumed; it leaves nothing behind. None if it is unknown."
    )
    assert faults(text) == []


def test_every_kind_of_sentence_in_code_is_read(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text(
        '"""The docstring of all."""\n'
        "parser.add_argument('--x', help='the help of an option')\n"
        "logger.warning('the warning of a log')\n"
        "print(f'{a}: the line of {b} is printed')\n"
        "raise ConfigError(\n"
        '    f"key: the error message of {a}, "\n'
        '    "in two pieces"\n'
        ")\n"
        "x = 1  # the comment at a line\n"
        "# a comment over\n"
        "# two whole lines\n"
    )
    read = {words.text for words in of_code(module, name="m.py")}
    assert read == {
        "The docstring of all.",
        "the help of an option",
        "the warning of a log",
        "…: the line of … is printed",
        "key: the error message of …, in two pieces",
        "the comment at a line",
        "a comment over\ntwo whole lines",
    }
