"""`logitbank completion SHELL`: a script that completes commands, options, views, conditions and configuration keys.

    source <(logitbank completion bash)      # now; or put it into ~/.bashrc, or the output where bash-completion looks
    source <(logitbank completion zsh)

The script is static: a key press starts no Python. Make it anew after an update.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from importlib import metadata
from string import Template

from logitbank.__main__ import GROUP
from logitbank.command import CommandParser, run_command
from logitbank.configs import config_keys, shipped_configs
from logitbank.experiment import CONDITIONS, NO_VIEW, VIEWS
from logitbank.registry import STRATEGIES

SHELLS = ("bash", "zsh")
# What completes the values of an argument, by its destination; shtab completes files where a name has `_file` in it.
DIRECTORIES = ("store", "output", "results", "checkpoint", "plot")
# A key waits for its value, so no space follows; a console script of its own completes as `logitbank SCRIPT` does.
GLUE = {
    "bash": """
_logitbank() {
  _shtab_logitbank
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
  return 0
}
_logitbank_alone() {
  local COMP_WORDS=(logitbank "${COMP_WORDS[@]}") COMP_CWORD=$((COMP_CWORD + 1))
  _logitbank
}
complete -o bashdefault -F _logitbank logitbank
complete -o bashdefault -F _logitbank_alone $scripts
""",
    "zsh": """
_logitbank_alone() {
  words=(logitbank "${words[@]}")
  (( CURRENT += 1 ))
  _shtab_logitbank
}
compdef _logitbank_alone $scripts
""",
}


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_args(argv)
    run_command(lambda: print(script(arguments.shell)))


def script(shell: str) -> str:
    """The completion script of a shell, one of `SHELLS`."""
    import shtab  # not for --help

    lists = {
        "view": [*VIEWS, NO_VIEW],
        "condition": list(CONDITIONS),
        "strategy": list(STRATEGIES),
        "overrides": [f"{key}=" for key in config_keys()],
        "config": [*shipped_configs(), *(f"{key}=" for key in config_keys())],  # keys may follow files
    }
    names = {name: f"_logitbank_{name}{'_file' if name == 'config' else ''}" for name in lists}
    tree = GROUP.make_tree()
    for action in _actions(tree):
        if action.dest in lists:
            words = " ".join(lists[action.dest])
            action.complete = {"bash": names[action.dest], "zsh": f"({words})"}  # type: ignore[attr-defined]
        elif action.dest in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    files = {"config": 'compgen -f -- "$1"; '}
    functions = [
        f'{names[name]}() {{ compgen -W {shlex.quote(" ".join(words))} -- "$1"; {files.get(name, "")}}}'
        for name, words in lists.items()
    ]
    preamble = "\n".join(functions) if shell == "bash" else ""
    scripts = [entry.name for entry in metadata.distribution("logitbank").entry_points if entry.name in GROUP.members]
    glue = Template(GLUE[shell]).safe_substitute(scripts=" ".join(sorted(scripts)))
    return str(shtab.complete(tree, shell=shell, preamble=preamble)) + glue


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Arguments of a parser and of all below it."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                yield from _actions(below)
