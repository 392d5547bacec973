"""What stands beside the code: the site's navigation, citation, hooks, and what continuous integration runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

import logitbank
from logitbank import registry
from tests.docs.pages import DOCS, PROJECT, ROOT, without_code


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def pages_of(nav: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in nav:
        for item in entry.values() if isinstance(entry, dict) else [entry]:
            found += [item] if isinstance(item, str) else pages_of(item)
    return found


def targets(text: str) -> set[str]:
    return {target for line in re.findall(r"make ((?:[a-z-]+ ?)+)", text) for target in line.split()}


def leaves(target: str) -> set[str]:
    """The targets that a target of the Makefile is made of: what it needs or calls, down to those that do the work."""
    makefile = (ROOT / "Makefile").read_text()
    rule = re.search(rf"^{target}:(.*)\n((?:\t.*\n)*)", makefile, re.MULTILINE)
    assert rule is not None, f"there is no make {target}"
    called = re.findall(r"\$\(MAKE\)(.*)", rule[2])
    needed = [word for words in (rule[1], *called) for word in words.split() if re.fullmatch(r"[a-z][a-z-]*", word)]
    below = set(needed) - {"install"}
    return {leaf for part in below for leaf in leaves(part)} if below else {target}


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages_of(read("mkdocs.yml")["nav"])
    here = [page.relative_to(ROOT / "docs").as_posix() for page in DOCS]
    assert sorted(listed) == sorted([*here, "index.md", "contributing.md", "changelog.md", "examples.md"])


def test_a_warning_ends_the_build_of_the_site() -> None:
    assert read("mkdocs.yml")["strict"] is True
    (build,) = re.findall(r"mkdocs build(.*)", (ROOT / "Makefile").read_text())
    assert build == "", "with --quiet, mkdocs counts no warnings, and strict has no effect"


def test_every_room_is_in_the_reference_and_the_architecture() -> None:
    rooms = {path.name for path in (ROOT / "logitbank").iterdir() if path.is_symlink()}
    reference = {page.stem for page in (ROOT / "docs/reference").glob("*.md")} - {"index"}
    assert reference == rooms - {"scripts"}
    architecture = (ROOT / "docs/architecture.md").read_text()
    assert all(f"| `{room}/` |" in architecture for room in rooms)


def test_contributing_says_how_to_add_to_every_registry() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    registries = [name for name, value in vars(registry).items() if isinstance(value, registry.Registry)]
    assert len(registries) >= 6
    assert [name for name in registries if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize(
    ("choices", "pages"),
    [
        (registry.TASKS, ("configuration.md",)),
        (registry.ENCODINGS, ("configuration.md", "store-format.md")),
        (registry.LOSSES, ("configuration.md", "training.md")),
        (registry.STRATEGIES, ("configuration.md", "training.md")),
        (registry.TEACHER_ENGINES, ("configuration.md",)),
        (registry.EVALUATION_ENGINES, ("configuration.md",)),
        (registry.IMPORT_LAYOUTS, ("commands.md", "sharing.md")),
        (registry.EXPORT_LAYOUTS, ("commands.md", "sharing.md")),
    ],
    ids=lambda value: getattr(value, "key", ""),
)
def test_every_choice_is_documented(choices: registry.Registry[Any], pages: tuple[str, ...]) -> None:
    for page in pages:
        code = re.findall(r"`[^`\n]+`", without_code((ROOT / "docs" / page).read_text()))
        words = {word for span in code for word in re.findall(r"[\w-]+", span)}
        assert sorted(set(choices) - words) == [], page


def test_every_dependency_has_its_reason() -> None:
    project = PROJECT["project"]
    required = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    names = {re.split(r"[\[<>=; ]", item)[0].lower() for item in required}
    table = (ROOT / "docs/decisions.md").read_text().split("### Dependencies\n")[1].split("\n#")[0].lower()
    explained = set(re.findall(r"[\w-]+", table.replace("_", "-")))
    assert sorted(name for name in names if name.replace("_", "-") not in explained) == []


def test_one_version_stands_everywhere() -> None:
    version = logitbank.__version__
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "logitbank.__version__"}
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    citation = read("CITATION.cff")
    assert citation["version"] == version
    assert citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    jobs = read(".github/workflows/checks.yml")["jobs"]
    runs = targets("\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"]))
    wanted = {leaf for part in targets((ROOT / ".ci/run").read_text()) for leaf in leaves(part)}
    assert {leaf for target in runs for leaf in leaves(target)} - {"install"} == wanted


def test_the_workflow_starts_with_the_oldest_python_supported() -> None:
    matrix = read(".github/workflows/checks.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert f">={matrix[0]}" == PROJECT["project"]["requires-python"]


def test_hooks_call_tools_that_are_installed_and_pinned() -> None:
    pinned = (ROOT / "constraints.txt").read_text()
    development = " ".join(PROJECT["project"]["optional-dependencies"]["dev"])
    for hook in read(".pre-commit-config.yaml")["repos"][0]["hooks"]:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert f"\n{tool}==" in pinned, hook["id"]
        assert f"{tool}>=" in development, hook["id"]
