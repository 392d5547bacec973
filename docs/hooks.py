"""What the site adds to `docs/`: pages that live elsewhere in the repository, with their links turned.

README, CONTRIBUTING, CHANGELOG and the examples' page are written for the place where they lie, so that their links
work in the repository; here they become pages of the site, and links that lead to them from `docs/` find those pages.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
LINK = re.compile(r"\]\((?P<target>[^)#:\s]+\.(?:md|svg))(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere in the repository."""
    for source, page in PAGES.items():
        content = LINK.sub(_from_the_top, (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to those pages into links to the pages here."""
    return LINK.sub(_from_a_page, markdown)


def _from_the_top(link: re.Match[str]) -> str:
    target = link["target"].removeprefix("../")  # the examples' page lies one folder down
    return _link(PAGES.get(target, target.removeprefix("docs/")), link)


def _from_a_page(link: re.Match[str]) -> str:
    target = link["target"]
    return _link(PAGES.get(target.removeprefix("../"), target) if target.startswith("../") else target, link)


def _link(target: str, link: re.Match[str]) -> str:
    return f"]({target}{link['anchor'] or ''})"
