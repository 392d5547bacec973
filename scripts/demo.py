"""The whole path on tiny models, with no download: worlds, teachers, students, conditions, tables.

First preferences between two answers: teachers out of fold, students with and without them, a submission. Then six
small tasks: a teacher cache, three students, five conditions. A few minutes on two CPU cores. What is finished is not
done again; delete the directory to start anew.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logitbank.command import CommandParser, make_directory, run_command
from logitbank.experiment import STUDENTS, STUDY_CONDITIONS
from logitbank.scripts import preference
from logitbank.scripts.ending import Ending
from logitbank.scripts.preference_plan import Plan, Teacher
from logitbank.scripts.stages import Stages, heading

if TYPE_CHECKING:
    from logitbank.scripts.demo_world import Pretraining, World
    from logitbank.scripts.preference_world import PreferenceWorld

NEXT = """
next      inspect-cache --store {store} --example nli/en/train/0    one example, token by token
          query-results --results {results} tables                  every table
          logitbank study xtreme --output runs/xtreme --config qwen3-1.7b    the same path on a real model"""


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(prog="logitbank demo", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="directory for everything the command writes (default: runs/demo)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_args(argv)

    def body() -> None:
        make_directory("--output", arguments.output)
        run_preferences(arguments.output / "preference")
        run(arguments.output)

    run_command(body, resumes=True)


def run(
    output: Path, overrides: Sequence[str] = (), *, world: World | None = None, plan: Pretraining | None = None
) -> None:
    """The demo, from an empty directory to its tables.

    Args:
        output: everything goes there.
        overrides: `key=value` for every stage.
        world: the data; None for the demo's own.
        plan: how the model is made; None for the demo's own.
    """
    from logitbank.scripts import demo_world  # torch: not for --help

    make_directory("--output", output)
    store, results = output / "store", output / "results"
    ending = Ending(output, [str(store)])
    heading("a world whose labels only demonstrations explain, and a model that reads them in context")
    demo_world.make_mirror(output / "hub", world or demo_world.World())
    demo_world.make_model(output / "model", plan or demo_world.Pretraining())
    places = [f"model.name={output / 'model'}", f"data.mirror={output / 'hub'}"]
    stages = Stages("demo", ["demo"], [*places, *overrides], str(store), results)
    stages.build()
    stages.students(STUDENTS, output)
    stages.conditions(STUDY_CONDITIONS, output)
    ending.print(tables=True)
    print(NEXT.format(store=shlex.quote(str(store)), results=shlex.quote(str(results))))


def run_preferences(output: Path, overrides: Sequence[str] = (), *, world: PreferenceWorld | None = None) -> Plan:
    """The demo's study of preferences, from an empty directory to its submission; returns what it did.

    Args:
        output: everything goes there.
        overrides: `key=value` for every step.
        world: the comparisons; None for the demo's own.
    """
    from logitbank.scripts import preference_world  # torch: not for --help

    make_directory("--output", output)
    heading("a world of preferences: three tenths of the labels that students read are wrong")
    places = preference_world.make_world(output, world or preference_world.PreferenceWorld(), preference_world.Shape())
    teachers = (Teacher("informed", str(output / "model")),)
    plan = Plan(output, teachers, ("demo-preference",), (*places, *overrides), student_rows="train")
    preference.run(plan)
    return plan
