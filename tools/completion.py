# SPDX-License-Identifier: Apache-2.0
"""Write completions of `torpor` and `criu` for bash and zsh, from the tables of their options.

    completion.py DIRECTORY

It holds `bash/torpor`, `bash/criu`, `zsh/_torpor` and `zsh/_criu` afterwards.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DIRECTORIES, FILES = "-d", "-f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option: its names, what it is for, and what may follow (nothing: None)."""

    names: Sequence[str]
    text: str
    takes: Sequence[str] | str | None = None
    """Words, or DIRECTORIES, or FILES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A command line: options of each command, the first of which stand for all commands."""

    name: str
    commands: Mapping[str, str]
    flags: Mapping[str, Sequence[Flag]]


def criu() -> Program:
    """Of the option table."""
    from torpor.engine.criu.features import CRIU_FEATURES
    from torpor.engine.criu.options import COMMANDS, OPTIONS, Option, Takes

    def flag(option: Option) -> Flag:
        takes: Sequence[str] | str | None = None
        if option.takes is not Takes.NOTHING:
            said = (option.wrong and option.wrong("\0")) or ""
            _, listed, words = said.rpartition(" of ")
            takes = (
                words.split(", ") if listed and said.startswith(("one of", "some of")) else FILES
            )
        if option.long == "feature":
            takes = [one.name for one in CRIU_FEATURES]
        if option.long.endswith("-dir") or option.long == "libdir":
            takes = DIRECTORIES
        names = [f"-{option.short}"] * bool(option.short) + [f"--{option.long}"]
        return Flag(names=names, text=option.why, takes=takes)

    offered = [flag(option) for option in OPTIONS]
    commands = {name: "" for name, why in COMMANDS.items() if why is None}
    return Program(name="criu", commands=commands, flags={"": offered})


def torpor() -> Program:
    """Of the parser; options are those of a command."""
    import argparse

    from torpor.engine.cli.parser import build

    root = build()
    (listed,) = (one for one in root._actions if isinstance(one, argparse._SubParsersAction))
    texts = {one.dest: one.help or "" for one in listed._choices_actions}

    def flags(parser: argparse.ArgumentParser) -> list[Flag]:
        return [
            Flag(names=one.option_strings, text=one.help or "",
                 takes=None if one.nargs == 0 else DIRECTORIES if one.metavar == "DIR" else FILES)
            for one in parser._actions if one.option_strings
        ]  # fmt: skip

    return Program(
        name="torpor", commands=texts,
        flags={"": flags(root), **{name: flags(sub) for name, sub in listed.choices.items()}},
    )  # fmt: skip


def bash(program: Program) -> str:
    """A completion for bash."""
    cases = "\n".join(_values(program))
    options = "\n".join(
        f'        {command or "*"}) words="{_names(flags)}" ;;'
        for command, flags in sorted(program.flags.items(), key=lambda one: one[0] == "")
    )
    return f"""\
# bash completion of {program.name}, made by tools/completion.py
_{program.name}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
    local command= words= one
    for one in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case " {" ".join(program.commands)} " in *" $one "*) command=$one; break ;; esac
    done
    case $before in
{cases}
    esac
    case $command in
{options}
    esac
    if [[ -z $command && $word != -* ]]; then
        words="{" ".join(program.commands)}"
    fi
    if [[ $word == -* || -z $command ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _{program.name} {program.name}
"""


def _names(flags: Sequence[Flag]) -> str:
    return " ".join(name for flag in flags for name in flag.names)


def _values(program: Program) -> Iterator[str]:
    seen: dict[str, Sequence[str] | str] = {}
    for flags in program.flags.values():
        for flag in flags:
            if flag.takes is not None:
                seen["|".join(flag.names)] = flag.takes
    for names, takes in seen.items():
        what = takes if isinstance(takes, str) else f'-W "{" ".join(takes)}"'
        yield f'        {names}) COMPREPLY=($(compgen {what} -- "$word")); return ;;'


def zsh(program: Program) -> str:
    """A completion for zsh."""
    commands = "\n".join(
        f"        {_quoted(f'{name}:{text}' if text else name)}"
        for name, text in program.commands.items()
    )
    cases = "\n".join(
        f"        {command or '*'}) _arguments -S {_specs(flags)} '*:file:_files' ;;"
        for command, flags in sorted(program.flags.items(), key=lambda one: one[0] == "")
    )
    return f"""\
#compdef {program.name}
# zsh completion of {program.name}, made by tools/completion.py
_{program.name}() {{
    local -a commands
    commands=(
{commands}
    )
    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then
        _describe command commands
        return
    fi
    case $words[2] in
{cases}
    esac
}}
_{program.name} "$@"
"""


def _specs(flags: Sequence[Flag]) -> str:
    found = []
    for flag in flags:
        text = flag.text.replace("[", "(").replace("]", ")").replace(":", ",")
        takes = {None: "", DIRECTORIES: ":directory:_files -/", FILES: ":value:_files"}
        after = takes[flag.takes] if flag.takes is None or isinstance(flag.takes, str) else (
            f":value:({' '.join(flag.takes)})"
        )  # fmt: skip
        found += [_quoted(f"{name}[{text}]{after}") for name in flag.names]
    return " ".join(found)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def write(directory: Path) -> None:
    """Write all four."""
    for program in (torpor(), criu()):
        for shell, text, prefix in (("bash", bash(program), ""), ("zsh", zsh(program), "_")):
            place = directory / shell / f"{prefix}{program.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
