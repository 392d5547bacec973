"""Prose reads as a native engineer would write it: phrases that kept coming back, and what says it better."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, TOP, name_of, without_code

INSTEAD = {
    r"goes on (from|where|with)": "resumes, continues",
    r"go on (from|where|with)": "resume, continue",
    r"from where it (is|was)": "resumes",
    r"is found out": "is detected",
    r"which of the two it is": "name the thing",
    r"is another one": "differs, is part of",
    r"\bdearer\b": "costs more than",
    r"\bwhoever\b": "anyone who, people who",
    r"\bis .{1,30} ally\b": "say what it does",
    r"\bgood minutes\b": "intermittently",
    r"\bin words that\b": "as",
    r"\bmends?\b|\bmended\b": "fix",
    r"\bwithout a word\b": "silently",
    r"\b(shall|thereof|therein|whilst|hence it)\b": "plain words",
    r"\bvery\b(?! first)": "nothing",
    r"\bsimply\b|\bof course\b|\bobviously\b": "nothing",
}


def faults(text: str) -> list[str]:
    flat = " ".join(text.split())
    return [
        f"{match[0]!r}: {better}" for phrase, better in INSTEAD.items() for match in re.finditer(phrase, flat, re.I)
    ]


@pytest.mark.parametrize("page", [*TOP, *DOCS], ids=name_of)
def test_a_page_is_free_of_phrases_that_read_as_translated(page: Path) -> None:
    assert faults(without_code(page.read_text())) == []
