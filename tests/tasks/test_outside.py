"""Tasks that users bring: named by file, by module, or by what a package installs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logitbank.configs import ConfigError, load_config
from logitbank.errors import LogitbankError
from logitbank.registry import TASKS, Registry
from logitbank.tasks import Task, TaskError
from logitbank.tasks.data import cells
from logitbank.tasks.outside import open_tasks, source_hash

REVIEWS = """
from logitbank.tasks.common import Example, HubSource, Source, class_name
from logitbank.tasks.scoring.labels import LabelAnswers


class Reviews(LabelAnswers):
    name = "reviews"
    system_prompt = "Is the review good or bad?"
    languages = ("en",)
    sources = {"mine": Source(lambda split, language: HubSource("me/reviews", "default", split), ("en",), ("en",))}
    num_demonstrations = 2
    max_new_tokens = 5
    labels = ("bad", "good")

    def to_example(self, row, language, example_id):
        return Example(example_id, self.name, language, {"text": row["text"]}, class_name(row["label"], self.labels))

    def user_message(self, example):
        return example.fields["text"]
"""


@pytest.fixture(autouse=True)
def forget_tasks() -> Iterator[None]:
    """What a configuration opens stays until its command ends."""
    before = set(TASKS)
    yield
    for name in set(TASKS) - before:
        TASKS.unregister(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `reviews.py`."""
    (tmp_path / "reviews.py").write_text(REVIEWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(folder: Path, before: str, after: str) -> None:
    assert before in REVIEWS
    (folder / "reviews.py").write_text(REVIEWS.replace(before, after))


def tasks_of(*asked: str) -> list[str]:
    return load_config([], ["model.name=m", f"tasks=[{','.join(asked)}]"]).tasks


def test_a_file_s_task_goes_by_its_own_name(folder: Path) -> None:
    config = load_config(
        [], ["model.name=m", "tasks=[nli, ./reviews.py:Reviews]", "fewshot.num_demonstrations.reviews=3"]
    )
    assert config.tasks == ["nli", "reviews"]
    assert config.fewshot.num_demonstrations == {"reviews": 3}
    assert TASKS["reviews"].user_message(TASKS["reviews"].to_example({"text": "x", "label": 1}, "en", "i")) == "x"


@pytest.mark.parametrize("reference", ["reviews.py:Reviews", "{folder}/reviews.py:Reviews", "./reviews.py:TASK"])
def test_a_reference_is_a_relative_or_whole_path_and_a_class_or_an_instance(folder: Path, reference: str) -> None:
    (folder / "reviews.py").write_text(f"{REVIEWS}\n\nTASK = Reviews()\n")
    assert tasks_of(reference.format(folder=folder)) == ["reviews"]


def test_a_configuration_s_paths_begin_in_the_working_directory(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.yaml").write_text("model: {name: m}\ntasks: [./reviews.py:Reviews]\n")
    assert load_config(["configs/mine.yaml"]).tasks == ["reviews"]


def test_a_module_s_task_is_found_where_python_finds_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "tasks.py").write_text(REVIEWS)
    with pytest.raises(
        TaskError, match=r"no module mypackage; install its package, or name a file: \./mypackage/tasks"
    ):
        tasks_of("mypackage.tasks:Reviews")
    monkeypatch.syspath_prepend(str(folder))
    assert tasks_of("mypackage.tasks:Reviews") == ["reviews"]
    monkeypatch.delitem(sys.modules, "mypackage.tasks")
    monkeypatch.delitem(sys.modules, "mypackage")


def test_a_reference_is_one_task_however_often_it_is_opened(folder: Path) -> None:
    assert open_tasks(["./reviews.py:Reviews"]) == open_tasks([f"{folder}/reviews.py:Reviews"]) == ["reviews"]
    with pytest.raises(ConfigError, match="tasks: expected each name at most once, got reviews, reviews"):
        tasks_of("./reviews.py:Reviews", "reviews.py:Reviews")


def test_two_tasks_of_one_name_are_refused(folder: Path) -> None:
    (folder / "other.py").write_text(REVIEWS)
    with pytest.raises(TaskError, match=rf"other.py:Reviews: its name is 'reviews', .* in {folder}/reviews.py; give"):
        tasks_of("./reviews.py:Reviews", "./other.py:Reviews")
    (folder / "third.py").write_text(REVIEWS.replace('"reviews"', '"nli"'))
    with pytest.raises(TaskError, match=r"third.py:Reviews: its name is 'nli', as is that of a task of logitbank"):
        tasks_of("./third.py:Reviews")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("./revues.py:Reviews", r"no file \S+/revues.py; relative paths start in the working directory"),
        ("./reviews.py", r"expected FILE.py:NAME, for example ./reviews.py:Reviews, got './reviews.py'"),
        ("./reviews.py:Review", "has no Review; it has Reviews"),
        ("./reviews.py:Example", r"Example\(\) cannot be made: TypeError: .*5 required positional arguments"),
        ("./reviews.py:class_name", "expected a task, got the function class_name"),
        ("my-package:Reviews", "expected FILE.py:NAME or MODULE:NAME, got 'my-package' before the colon"),
    ],
)
def test_what_is_no_reference_to_a_task_is_one_line(folder: Path, reference: str, says: str) -> None:
    with pytest.raises(TaskError, match=says) as caught:
        tasks_of(reference)
    assert str(caught.value).startswith("tasks: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('    name = "reviews"\n', "", r"lacks name; see the protocol Task in logitbank.tasks.common"),
        ("    labels = (", "    labelz = (", "lacks labels; see"),
        ("def user_message", "def user_massage", r"lacks user_message\(\); see"),
        ("class Reviews(LabelAnswers)", "class Reviews", r"lacks .*primary_metric.*parse\(\).*metrics\(\); see"),
        ("= 5", "= '5'", "max_new_tokens: expected a whole number, got '5'"),
        ("= 5", "= True", "max_new_tokens: expected a whole number, got True"),
        ('("en",)\n', '("en")\n', "languages: expected a tuple, every item a text, got 'en'"),
        ('("en",)\n', '("English",)\n', r"languages: expected ISO 639-1 codes such as .*, got \('English',\)"),
        ('("en",)\n', "()\n", r"languages: expected ISO 639-1 codes such as .*, got \(\)"),
        ('{"mine": Source', '{"mine": str, "other": Source', "sources: expected a mapping, every value a Source, got"),
        ('"reviews"', '"my.reviews"', "name: expected letters, digits, _ and - only, got 'my.reviews'"),
        ("self, row, language,", "self, row,", r"to_example\(\): expected the parameters row, language, example_id"),
        ("class Reviews", "class Reviews(", "cannot be imported: line 6: SyntaxError: "),
        (
            "class Reviews",
            "x = [][1]\nclass Reviews",
            "cannot be imported: line 6: IndexError: list index",
        ),
        ("class Reviews", "import nothere\nclass Reviews", "ModuleNotFoundError: No module named 'nothere'"),
        ("class Reviews", "import sys\nsys.exit(1)\nclass Reviews", "cannot be imported: line 7: SystemExit: 1"),
    ],
)
def test_a_class_that_is_no_whole_task_is_one_line(folder: Path, before: str, after: str, says: str) -> None:
    changed(folder, before, after)
    for _ in range(2):  # once refused is refused for good
        with pytest.raises(TaskError, match=f"tasks: ./reviews.py:Reviews: .*{says}") as caught:
            tasks_of("./reviews.py:Reviews")
        assert "\n" not in str(caught.value)
    assert "reviews" not in TASKS


def test_an_unknown_task_says_how_to_name_one_s_own() -> None:
    with pytest.raises(ConfigError, match=r"got 'sentiment'; name a task of your own by its file: tasks=\[\./FILE"):
        tasks_of("sentiment")


def test_training_knows_tasks_by_the_names_of_a_store() -> None:
    config = load_config([], ["model.name=m", "tasks=[reviews]", "data.sources.reviews=mine"], any_task=True)
    assert config.tasks == ["reviews"]
    with pytest.raises(TaskError, match=r"no file .*; or name the task as the store does, for training needs no more"):
        load_config([], ["model.name=m", "tasks=[./gone.py:Reviews]"], any_task=True)


def test_languages_of_its_own_join_those_of_the_study(folder: Path) -> None:
    changed(folder, 'languages = ("en",)', 'languages = ("en", "ja")')
    own = ["model.name=m", "tasks=[./reviews.py:Reviews]"]
    assert load_config([], own).languages == ["en", "ja"]
    assert load_config([], [*own, "tasks=[nli, ./reviews.py:Reviews]"]).languages == [
        *("en", "hi", "es", "de", "fr", "zh", "ja")
    ]
    assert load_config([], [*own, "languages=[ja]"]).languages == ["ja"]
    assert cells(["reviews", "nli"], ["en", "ja"]).absent == [("nli", "ja")]
    with pytest.raises(ConfigError, match="languages: expected one of en, hi, es, de, fr, zh, ja, got 'jp'"):
        load_config([], [*own, "languages=[jp]"])
    with pytest.raises(ConfigError, match="languages: expected one of en, hi, es, de, fr, zh, got 'ja'"):
        load_config([], ["model.name=m", "tasks=[nli]", "languages=[ja]"])


def test_the_source_s_hash_is_of_all_files_that_define_the_task(folder: Path) -> None:
    def hash_of(*asked: str) -> str | None:
        (name,) = open_tasks(asked)
        found = source_hash(TASKS[name])
        TASKS.unregister(name)
        return found

    (folder / "copy.py").write_text(REVIEWS)
    (folder / "parser.py").write_text(REVIEWS.replace('"bad", "good"', '"poor", "good"'))
    plain = hash_of("./reviews.py:Reviews")
    assert plain is not None
    assert re.fullmatch(r"[0-9a-f]{16}", plain)
    assert hash_of("./copy.py:Reviews") == plain  # wherever it lies
    assert hash_of("./parser.py:Reviews") != plain
    inherits = "import sys\nsys.path.append('.')\nfrom {} import Reviews as Base\n\n\nclass Reviews(Base):\n    pass\n"
    (folder / "one.py").write_text(inherits.format("copy_1"))
    (folder / "copy_1.py").write_text(REVIEWS)
    first = hash_of("./one.py:Reviews")
    sys.modules.pop("copy_1").Reviews.parse = None
    (folder / "copy_1.py").write_text(REVIEWS + "\n# another base\n")
    (folder / "two.py").write_text(inherits.format("copy_1"))
    assert hash_of("./two.py:Reviews") not in (first, plain)
    sys.modules.pop("copy_1")
    sys.path.remove(".")


@pytest.mark.parametrize("name", TASKS.shipped)
def test_the_package_s_own_tasks_have_no_hash(name: str) -> None:
    assert source_hash(TASKS[name]) is None


def installed(folder: Path, package: str, *points: str) -> None:
    """As an installer leaves it: metadata that name entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[logitbank.tasks]", *points]) + "\n")


@pytest.fixture
def registry() -> Registry[Any]:
    """One that has not looked at what is installed yet."""
    shipped = {"nli": "logitbank.tasks.nli:TASK", "pa": "logitbank.tasks.pa:TASK"}
    return Registry("tasks", shipped, group="logitbank.tasks", opener="logitbank.tasks.outside:open_installed")


def test_installed_tasks_are_listed_without_being_imported(
    folder: Path, registry: Registry[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken_tasks.py").write_text("raise RuntimeError('not now')\n")
    (folder / "my_reviews.py").write_text(REVIEWS)
    points = ("reviews = my_reviews:Reviews", "broken = broken_tasks:Thing", "stars = my_reviews:Reviews")
    installed(folder, "my-reviews", *points)
    monkeypatch.syspath_prepend(str(folder))
    assert list(registry) == ["nli", "pa", "reviews", "broken", "stars"]
    assert len(registry) == 5
    assert "broken" in registry
    assert "broken_tasks" not in sys.modules
    assert registry["nli"].name == "nli"
    assert registry["reviews"].labels == ("bad", "good")
    assert registry["reviews"] is registry["reviews"]
    with pytest.raises(TaskError, match=r"broken of the package my-reviews: cannot be imported: RuntimeError: not now"):
        registry["broken"]
    with pytest.raises(TaskError, match=r"stars of the package my-reviews: expected a task with that name.* 'reviews'"):
        registry["stars"]
    with pytest.raises(KeyError):
        registry["moons"]
    with pytest.raises(ConfigError, match="reviews is already registered"):
        registry.register("reviews", "elsewhere:thing")
    monkeypatch.delitem(sys.modules, "my_reviews")


def test_a_name_that_two_packages_have_is_refused_when_it_is_asked_for(
    folder: Path, registry: Registry[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(folder, "one", "reviews = my_reviews:Reviews", "nli = my_reviews:Nli")
    installed(folder, "two", "reviews = other_reviews:Reviews")
    monkeypatch.syspath_prepend(str(folder))
    for name, packages in (("reviews", "(one and in two|two and in one)"), ("nli", "logitbank and in one")):
        with pytest.raises(LogitbankError, match=f"tasks: {name} is a name in {packages}; uninstall one of them"):
            registry[name]
    assert registry["pa"].name == "pa"
