"""`python -m tests.docs.style`: proselint over the pages, and over messages, help, docstrings and comments.

proselint reads running text: code blocks are left out, and a code span counts as a noun. Line numbers are those of the
file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.docs.words import Words, all_words

# Checks that do not fit technical English in Markdown.
OFF = (
    "typography.diacritical_marks",  # "resume" is a verb here
    "typography.symbols",  # quotes are straight, and dots are typed as the field does
    "misc.illogic",  # takes "more than comparing all of them" for a slip
    "dates_times.dates",  # takes columns of figures for ranges of dates
    "misc.preferred_forms",  # takes the font "sans-serif" for a misspelling
    "oxymorons",  # takes "Found missing adapter keys" for one
    "typography.punctuation",  # takes line ends of Markdown for spaces
    "lexical_illusions",  # takes equal cells of a table for a word said twice
)
KNOWN = Words("known.md:1", "The free gift was very unique.")


def faults(words: Iterable[Words]) -> list[str]:
    """What proselint finds, each with its file and line."""
    lines: dict[str, dict[int, str]] = defaultdict(dict)
    for each in words:
        file, first = each.place.rsplit(":", 1)
        for number, line in enumerate(_running(each.text).split("\n"), int(first)):
            lines[file][number] = f"{lines[file].get(number, '')} {line}"
    with tempfile.TemporaryDirectory() as folder:
        for file, texts in lines.items():
            Path(folder, file.replace("/", "+") + ".txt").write_text(
                "".join(texts.get(number, "") + "\n" for number in range(1, max(texts) + 1))
            )
        config = Path(folder, "config.json")
        config.write_text(json.dumps({"max_errors": 1000, "checks": dict.fromkeys(OFF, False)}))
        command = [sys.executable, "-m", "proselint", "check", "--config", str(config), "--output-format", "compact"]
        done = subprocess.run([*command, folder], capture_output=True, text=True)
    return [re.sub(r"\.txt(?=:\d)", "", line).replace("+", "/") for line in (done.stdout + done.stderr).splitlines()]


def _running(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "code", re.sub(r"https?://\S+|\]\([^)]*\)|[*_#|>]", " ", text))


if __name__ == "__main__":
    assert faults([KNOWN]), "proselint overlooks the faults of a known sentence"
    found = faults(all_words())
    sys.exit("\n".join(found) if found else 0)
