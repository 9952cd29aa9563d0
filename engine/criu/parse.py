# SPDX-License-Identifier: Apache-2.0
"""CRIU's command line: options anywhere, `--no-X`, `-vvv`, `-v4`, `--name=value`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torpor.engine.criu.options import COMMANDS, OPTIONS, Fate, Option, Takes
from torpor.engine.errors import Refused

SEE = "see docs/criu-compat.md for what is taken"
LONG = {option.long: option for option in OPTIONS}
SHORT = {option.short: option for option in OPTIONS if option.short}


@dataclass(slots=True)
class CommandLine:
    """What was asked: a command, and the values of its options ("" for those without)."""

    command: str = ""
    words: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)

    def flag(self, key: str) -> bool:
        """Whether an option was given."""
        return key in self.values

    def last(self, key: str, default: str = "") -> str:
        """Value of an option; the last one counts."""
        return self.values.get(key, [default])[-1]

    def all(self, key: str) -> list[str]:
        """Values of an option that may be repeated."""
        return self.values.get(key, [])


def parse(arguments: Sequence[str]) -> CommandLine:
    """Parse a command line, everything after the program's name.

    Raises:
        Refused: an option or command that is unknown or not taken.
    """
    line = CommandLine()
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            line.words += words
            break
        if word.startswith("--"):
            _long(word, words, line)
        elif word.startswith("-") and word != "-":
            _short(word, words, line)
        else:
            line.words.append(word)
    if line.words:
        line.command, *line.words = line.words
        _check_command(line.command)
    return line


def _check_command(command: str) -> None:
    if command not in COMMANDS:
        raise Refused("unknown command", subject=f"criu {command}", remedy=SEE)
    why = COMMANDS[command]
    if why is not None:
        raise Refused("the command is not taken", subject=f"criu {command}", cause=why, remedy=SEE)


def _long(word: str, rest: list[str], line: CommandLine) -> None:
    name, equals, value = word[2:].partition("=")
    option = LONG.get(name)
    if option is None and name.startswith("no-") and name[3:] in LONG:
        negated = LONG[name[3:]]
        if negated.takes is Takes.NOTHING:
            line.values.pop(negated.key, None)
            return
    if option is None:
        raise Refused("unknown option", subject=f"--{name}", remedy=SEE)
    if equals and option.takes is Takes.NOTHING:
        raise Refused("takes no value", subject=f"--{name}", remedy=f"write --{name}")
    if not equals and option.takes is Takes.VALUE:
        value = _next(option, rest)
    _note(option, value, line)


def _short(word: str, rest: list[str], line: CommandLine) -> None:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter == "v":
            more = len(letters) - len(letters.lstrip("v"))
            level = letters[more : more + 1]
            digit = level if level.isdigit() else ""
            _note(LONG["verbosity"], digit or str(2 + 1 + more), line)
            letters = letters[more + len(digit) :]
            continue
        option = SHORT.get(letter)
        if option is None:
            raise Refused("unknown option", subject=f"-{letter}", remedy=SEE)
        value = ""
        if option.takes is not Takes.NOTHING:
            value, letters = letters, ""
            if not value and option.takes is Takes.VALUE:
                value = _next(option, rest)
        _note(option, value, line)


def _next(option: Option, rest: list[str]) -> str:
    if not rest:
        raise Refused("needs a value", subject=f"--{option.long}", remedy=f"write {option.text}")
    return rest.pop(0)


def _note(option: Option, value: str, line: CommandLine) -> None:
    why = option.why if option.fate is Fate.REFUSED else None
    if why is None and option.refuses is not None:
        why = option.refuses(value)
    if why is not None:
        raise Refused("the option is not taken", subject=f"--{option.long}", cause=why, remedy=SEE)
    line.values.setdefault(option.key, []).append(value)
