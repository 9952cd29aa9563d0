# SPDX-License-Identifier: Apache-2.0
"""Start of the `criu` command: CRIU's options, log and exit codes, this engine's work.

As for `torpor`, nothing is imported before it is needed: runtimes wait for this program.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torpor.engine import stdio
from torpor.engine.errors import Error, out_of_memory
from torpor.engine.version import CRIU_VERSION, VERSION

if TYPE_CHECKING:
    from torpor.engine.criu.parse import CommandLine

FAILED, INTERRUPTED = 1, 130
GIVEN_UP = 255
"""Status for commands that CRIU itself has given up."""
RUN = {
    "dump": "dump:run",
    "restore": "restore:run",
    "check": "check:run",
    "pre-dump": "predump:run",
    "dedup": "predump:run_dedup",
    "page-server": "pageserver:run",
    "lazy-pages": "lazy:run",
    "cpuinfo dump": "cpuinfo:run_dump",
    "cpuinfo check": "cpuinfo:run_check",
    "service": "service:run",
    "swrk": "swrk:run",
}
"""Command → module of this package and function."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 0, or 1 as CRIU does for every failure."""
    if arguments is None:
        stdio.complete()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["--version"], ["-V"]):
        return _version()
    try:
        return _run(arguments)
    except (Error, MemoryError) as raised:
        from torpor.engine.criu.parse import BadUsage

        error = raised if isinstance(raised, Error) else out_of_memory()
        _tell(str(error))
        return _usage(FAILED) if isinstance(error, BadUsage) else FAILED
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    finally:
        _stop_log()


def _tell(text: str) -> None:
    """An error, in the log if it has begun."""
    from torpor.engine import logs

    if not logs.started():
        logs.start(sys.stderr, criu=True)
    logs.logger(__name__).error("%s", text)


def _run(arguments: Sequence[str]) -> int:
    from torpor.engine.criu import config
    from torpor.engine.criu.options import GONE
    from torpor.engine.criu.parse import check_options, parse

    line = parse(arguments, before=config.words(arguments))
    if line.flag("version"):
        return _version()
    if line.flag("help") or not line.command:
        return _usage(0 if line.flag("help") else FAILED)
    if line.command in GONE:
        sys.stderr.write(f"Error ({__name__.rpartition('.')[2]}): {GONE[line.command]}\n")
        return GIVEN_UP
    check_options(line)
    return command(line.command)(line)


def command(name: str) -> "Callable[[CommandLine], int]":
    """The function of a command; only its module is imported."""
    from importlib import import_module

    module, _, function = RUN[name].partition(":")
    run: Callable[[CommandLine], int] = getattr(
        import_module(f"torpor.engine.criu.{module}"), function
    )
    return run


def _usage(status: int) -> int:
    from torpor.engine.criu.usage import usage

    sys.stdout.write(usage())
    return status


def _version() -> int:
    sys.stdout.write(f"Version: {CRIU_VERSION}\nEngine: torpor {VERSION}\n")
    return 0


def _stop_log() -> None:
    if "torpor.engine.logs" in sys.modules:
        from torpor.engine import logs

        logs.stop()
