"""What is published: a wheel that holds one import package, and works beside strangers of the same names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from logitbank.__main__ import GROUP
from logitbank.configs import shipped_configs
from logitbank.scripts.demo_world import Pretraining, World, make_mirror, make_model
from logitbank.scripts.study import GROUP as STUDIES

ROOT = Path(__file__).resolve().parents[2]
STRANGERS = ("configs", "tasks", "storage", "evaluation", "teacher_cache", "student_train", "models", "scripts")
STRANGERS += ("integrations",)
PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
HELP_SECONDS = 1.0  # of a processor


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this checkout: setuptools would pack whatever an earlier build has left in `build`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in sources():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return folder


def sources() -> list[str]:
    """Tracked files, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a wheel, and a source distribution in `sdist` beside the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    quietly(clone, *build, str(folder), "--wheel")
    quietly(clone, *build, str(folder / "sdist"))  # and a wheel from it
    return folder


def quietly(clone: Path, *command: str) -> None:
    """Run setuptools; it finds nothing to warn of."""
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "****" not in said, said  # its frame around what it wants changed
    assert "Warning" not in said, said


def test_an_editable_installation_is_a_path(clone: Path, tmp_path: Path) -> None:
    """Editors and type checkers follow paths, not import hooks; setuptools warns of hooks at every `make install`."""
    quietly(clone, sys.executable, "-c", f"import setuptools.build_meta as m; m.build_editable({str(tmp_path)!r})")
    with zipfile.ZipFile(wheel_of(tmp_path)) as archive:
        (path,) = [name for name in archive.namelist() if ".dist-info" not in name]
        assert archive.read(path).decode().strip() == str(clone)


def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def wheel_of(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_one_import_package_and_all_of_it(built: Path) -> None:
    inside = files(wheel_of(built))
    assert {name.partition("/")[0].partition("-")[0] for name in inside} == {"logitbank"}
    assert {name.partition("/")[0] for name in inside if ".dist-info" not in name} == {"logitbank"}
    linked = {path.name for path in (ROOT / "logitbank").iterdir() if path.is_symlink()}
    here = {name for name in sources() if name.startswith("logitbank/")} - {f"logitbank/{name}" for name in linked}
    rooms = {f"logitbank/{name}" for name in sources() if name.partition("/")[0] in linked}
    assert {name for name in inside if ".dist-info" not in name} == here | rooms
    assert {f"logitbank/configs/{name}.yaml" for name in shipped_configs()} <= inside
    assert "logitbank/py.typed" in inside
    assert {
        f"logitbank/scripts/slurm/{name}.sbatch" for name in ("teacher", "students", "evaluation", "report")
    } <= inside


def test_a_wheel_from_the_source_distribution_is_the_same(built: Path) -> None:
    assert files(wheel_of(built / "sdist")) == files(wheel_of(built))
    (source,) = (built / "sdist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "logitbank/configs/demo.yaml"} <= names


@pytest.fixture(scope="module")
def bare(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the commands of an environment: our dependencies, strangers of our rooms' names, and the wheel."""
    home = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    for name in STRANGERS:
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(f"raise ImportError('a stranger: {name}')")
        about = packages / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "RECORD").write_text(f"{name}/__init__.py,,\n{name}-1.0.dist-info/METADATA,,\n")
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python")]
    install = ["install", "--no-deps", "--no-index", "--quiet", str(wheel_of(built))]
    nothing_else = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, *install], env=nothing_else, cwd=home, check=True)
    # Only what lies there is seen, not what its own .pth files add: the editable installation of this checkout.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory of somebody who has files of those names."""
    for name in ("tasks.py", "storage.py", "configs/__init__.py", "evaluation/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise ImportError('the user has a file of this name')")
    make_mirror(tmp_path / "hub", World(train_rows=24, eval_rows=8))
    make_model(tmp_path / "model", Pretraining(layers=1, width=32, steps=1, batch=1))
    return tmp_path


def shown(language: str) -> list[str]:
    """The code blocks of docs/adding-a-task.md in a language."""
    page = (ROOT / "docs" / "adding-a-task.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def alone(home: Path) -> dict[str, str]:
    """An environment that names nothing of this checkout."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(folder: Path, *command: str) -> str:
    """Standard output of a command that ends well in a fresh interpreter, with nothing of this checkout on its path."""
    done = subprocess.run(command, cwd=folder, env=alone(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def of_my_own(bare: Path, folder: Path) -> None:
    """Tasks of the user: in a file of the working directory, and in a package that is put beside the wheel."""
    (rows,), code = shown("json"), shown("python")[0]
    packages = Path(subprocess.check_output([bare / "python", "-c", PACKAGES], text=True).strip())
    package = packages / "my_reviews"
    for place, name in ((folder / "mine", "reviews"), (package, "tasks")):
        place.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text(code if place != package else code.replace('"reviews"', '"my-reviews"'))
        for split in ("train", "validation", "test"):
            (place / f"reviews-{split}.jsonl").write_text(rows)
    about = packages / "my_reviews-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-reviews\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[logitbank.tasks]\nmy-reviews = my_reviews.tasks:Reviews\n")


@pytest.mark.usefixtures("of_my_own")
def test_every_command_and_tasks_of_one_s_own_run_beside_strangers(bare: Path, folder: Path) -> None:
    """Studies of our tasks and of one's own, and each command on what is finished, in one interpreter.

    Another one, a module as launchers start it, finds everything finished.
    """
    batch = ["training.global_batch_size=4", "training.micro_batch_size=4", "training.warmup_steps=0"]
    every = ["teacher.top_k=8", *batch, "evaluation.max_samples=2"]
    small = ["tasks=[nli]", "languages=[en]", "data.max_validation_per_task=2", "data.max_train_per_task=6"]
    shared = ["--config", "demo", "model.name=model", "data.mirror=hub", *small, *every, "training.max_steps=2"]
    own = ["model.name=model", *every, "training.max_steps=1", "training.use_lora=false"]
    store, results = ["--store", "out/demo/store"], ["--results", "out/results"]
    student = [*store, "--view", "none", "--output", "out/demo/finetuned", *results, "--resume", *shared]
    mine = ["study", "xtreme", "--output", "mine/out", "--steps", "1", "--samples", "2", "--train", "6"]
    mine += ["--model", "model", *own, "tasks=[./mine/reviews.py:Reviews]"]
    commands = [
        ["study", "xtreme", "--output", "out", *shared],
        ["build-teacher-cache", *store, *shared],
        ["train-student", *student],
        ["evaluate-model", "--condition", "base", *results, *shared],
        ["query-results", *results, "tables"],
        ["inspect-cache", *store, "--verify"],
        ["slurm", "--output", "out", "--dry-run", *shared],
        ["completion", "bash"],
        mine,
        ["build-teacher-cache", "--store", "mine/store", "--view", "zeroshot", *own, "tasks=[my-reviews]"],
        ["query-results", "--results", "mine/out/results", "tables"],
    ]
    program = (
        f"import logitbank, logitbank.__main__ as m; print(logitbank.__file__)\nfor argv in {commands}: m.main(argv)"
    )
    printed = run(folder, str(bare / "python"), "-c", program)
    assert Path(printed.splitlines()[0]).is_relative_to(bare.parent)
    for said in ("report ", "complete", "skipped", "nli (accuracy)", "sound", "teacher tokens", "complete -o"):
        assert said in printed
    assert "reviews (accuracy)" in printed
    assert "8 examples, 16 answer tokens; zeroshot complete" in printed
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    assert len(written) == 1 + 2 * 3
    again = run(folder, str(bare / "python"), "-m", "logitbank", *mine)
    assert "1 of 1 cells are already finished" in again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == written


@pytest.mark.parametrize("command", [*GROUP.members, *(f"study {name}" for name in STUDIES.members)])
def test_help_beside_strangers_takes_a_second_of_a_processor_at_most(bare: Path, tmp_path: Path, command: str) -> None:
    """Parsers import neither torch nor what it takes to read a store or rows."""
    (tmp_path / "tasks.py").write_text("raise ImportError('the user has a file of this name')")
    argv = [str(bare / command)] if (bare / command).exists() else [str(bare / "logitbank"), *command.split()]
    argv.append("--help")
    seconds = []
    for _ in range(3):  # the first reads files and may compile them; others may run beside it
        process = subprocess.Popen(
            [*argv, "--help"], cwd=tmp_path, env=alone(tmp_path), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        assert process.returncode == 0
        assert printed.startswith(f"usage: {command}") or printed.startswith(f"usage: logitbank {command}")
        seconds.append(usage.ru_utime + usage.ru_stime)
        if seconds[-1] <= HELP_SECONDS:
            break
    assert min(seconds) <= HELP_SECONDS
