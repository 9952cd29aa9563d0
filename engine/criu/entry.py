# SPDX-License-Identifier: Apache-2.0
"""Start of the `criu` command: CRIU's options, log and exit codes, this engine's work.

As for `torpor`, nothing is imported before it is needed: runtimes wait for this program.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torpor.engine.errors import Error
from torpor.engine.version import CRIU_VERSION, VERSION

if TYPE_CHECKING:
    from torpor.engine.criu.parse import CommandLine

FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 0, or 1 as CRIU does for every failure."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["--version"], ["-V"]):
        return _version()
    try:
        return _run(arguments)
    except Error as error:
        from torpor.engine import logs

        if not logs.started():
            logs.start(sys.stderr, criu=True)
        logs.logger(__name__).error("%s", error)
        return FAILED
    finally:
        _stop_log()


def _run(arguments: Sequence[str]) -> int:
    from torpor.engine.criu.parse import parse

    line = parse(arguments)
    if line.flag("version"):
        return _version()
    if line.flag("help") or not line.command:
        from torpor.engine.criu.usage import usage

        sys.stdout.write(usage())
        return 0 if line.flag("help") else FAILED
    from torpor.engine.criu import commands

    return commands.COMMANDS[line.command](line)


def _version() -> int:
    sys.stdout.write(f"Version: {CRIU_VERSION}\nEngine: torpor {VERSION}\n")
    return 0


def _stop_log() -> None:
    if "torpor.engine.logs" in sys.modules:
        from torpor.engine import logs

        logs.stop()


def describe(line: "CommandLine") -> str:
    """The command and its options, for the head of the log."""
    return " ".join([line.command, *(f"--{key.replace('_', '-')}" for key in sorted(line.values))])
