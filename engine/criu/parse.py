# SPDX-License-Identifier: Apache-2.0
"""CRIU's command line: options anywhere, `--no-X`, `-vvv`, `-v4`, `--name=value`, short names.

Facts (criu 4.2.1, tried): words are as getopt_long(3) takes them. A long name may be cut as long
as it stays unique. What is no option, a value that is missing or one too many, and a wrong word of
--cpu-cap, --manage-cgroups and --file-validation end with the usage on stdout and status 1.
--inherit-fd and --mntns-compat-mode are refused with other commands than `restore`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torpor.engine.criu.options import COMMANDS, GONE, LONG, SHORT, Option, Takes
from torpor.engine.errors import Refused

SEE = "see docs/criu-compat.md for what is taken"
ACTIONS = {"cpuinfo": ("dump", "check")}
"""Commands of two words."""
WITH_USAGE = ("cpu-cap", "manage-cgroups", "file-validation")
"""Options whose wrong value prints the usage as well."""
OF_RESTORE = ("inherit-fd", "mntns-compat-mode")
"""Options that no other command takes."""
WITH_WORDS = ("swrk", "exec", "show")


class BadUsage(Refused):
    """The command line is none: the usage is printed as well."""


@dataclass(slots=True)
class CommandLine:
    """What was asked: a command, and the values of its options ("" for those without)."""

    command: str = ""
    words: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    program: list[str] = field(default_factory=list)
    """What follows `--`."""

    def flag(self, key: str) -> bool:
        """Whether an option was given."""
        return key in self.values

    def last(self, key: str, default: str = "") -> str:
        """Value of an option; the last one counts."""
        return self.values.get(key, [default])[-1]

    def all(self, key: str) -> list[str]:
        """Values of an option that may be repeated."""
        return self.values.get(key, [])

    def number(self, key: str, default: int = 0) -> int:
        """Value of an option that is a number (its ``wrong`` has seen to that)."""
        return int(self.last(key)) if self.flag(key) else default


def parse(arguments: Sequence[str], *, before: Sequence[str] = ()) -> CommandLine:
    """Parse a command line, everything after the program's name.

    ``before`` are options of configuration files: those of the command line come after them.

    Raises:
        BadUsage: not a command line.
        Refused: an option or command that is not taken, or a wrong value.
    """
    line = CommandLine()
    for words in (list(before), list(arguments)):
        _take(words, line)
    if line.words:
        line.command, *line.words = line.words
        _check_command(line)
    return line


def _take(words: list[str], line: CommandLine) -> None:
    while words:
        word = words.pop(0)
        if word == "--":
            line.program = words
            break
        if word.startswith("--"):
            _long(word, words, line)
        elif word.startswith("-") and word != "-":
            _short(word, words, line)
        else:
            line.words.append(word)


def _check_command(line: CommandLine) -> None:
    command = line.command
    if line.flag("help") or line.flag("version") or command in GONE:
        return
    if command not in COMMANDS:
        raise BadUsage("unknown command", subject=f"criu {command}", remedy=SEE)
    if command in ACTIONS:
        if line.words[:1] == [] or line.words[0] not in ACTIONS[command]:
            raise BadUsage("requires an action", subject=command,
                           remedy=f"one of {', '.join(ACTIONS[command])}")  # fmt: skip
        line.command = f"{command} {line.words.pop(0)}"
    if line.words and command not in WITH_WORDS:
        raise BadUsage(f"excessive parameter for command {command}", subject=line.words[0])
    if line.program and not line.flag("exec_cmd"):
        raise BadUsage(f"excessive parameter for command {command}", subject=line.program[0])
    why = COMMANDS[command]
    if why is not None:
        raise Refused("the command is not taken", subject=f"criu {command}", cause=why, remedy=SEE)


def check_options(line: CommandLine) -> None:
    """Whether the command takes its options; a request by RPC may have more.

    Raises: Refused.
    """
    if line.flag("stream") and line.command not in ("dump", "restore"):
        raise Refused("cannot be used with this command", subject=f"--stream, {line.command}",
                      remedy="leave it out")  # fmt: skip
    for name in OF_RESTORE:
        if line.command != "restore" and line.flag(LONG[name].key):
            raise Refused("is an option of restore only", subject=f"--{name}",
                          remedy="leave it out")  # fmt: skip


def option_named(name: str) -> Option | None:
    """The option of a long name, which may be cut short as long as it is unique."""
    if name in LONG:
        return LONG[name]
    found = [option for long, option in LONG.items() if name and long.startswith(name)]
    if len(found) > 1:
        raise BadUsage("option is ambiguous", subject=f"--{name}",
                       cause=", ".join(f"--{option.long}" for option in found))  # fmt: skip
    return found[0] if found else None


def _long(word: str, rest: list[str], line: CommandLine) -> None:
    name, equals, value = word[2:].partition("=")
    if name.startswith("no-") and name not in LONG:
        negated = option_named(name[3:])
        if negated is not None and negated.takes is Takes.NOTHING and not equals:
            line.values.pop(negated.key, None)
            return
    option = option_named(name)
    if option is None:
        raise BadUsage("unrecognized option", subject=f"--{name}", remedy=SEE)
    if equals and option.takes is Takes.NOTHING:
        raise BadUsage("option doesn't allow an argument", subject=f"--{name}",
                       remedy=f"write --{name}")  # fmt: skip
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
            raise BadUsage("invalid option", subject=f"-{letter}", remedy=SEE)
        value = ""
        if option.takes is not Takes.NOTHING:
            value, letters = letters, ""
            if not value and option.takes is Takes.VALUE:
                value = _next(option, rest)
        _note(option, value, line)


def _next(option: Option, rest: list[str]) -> str:
    if not rest:
        raise BadUsage("option requires an argument", subject=f"--{option.long}",
                       remedy=f"write {option.text}")  # fmt: skip
    return rest.pop(0)


def _note(option: Option, value: str, line: CommandLine) -> None:
    if option.wrong is not None and (asked := option.wrong(value)):
        kind = BadUsage if option.long in WITH_USAGE else Refused
        raise kind(f"is not {asked}", subject=f"--{option.long} {value}",
                   remedy=f"write {option.text}")  # fmt: skip
    if option.long == "verbosity" and not value:
        value = str(int(line.last("verbosity", "2")) + 1)
    line.values.setdefault(option.key, []).append(value)
