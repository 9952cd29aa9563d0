# SPDX-License-Identifier: Apache-2.0
"""What dump and restore have in common: the log, files beside the images, and waiting."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.engine import logs
from torpor.engine.errors import Error, Vanished
from torpor.engine.images.failures import translated
from torpor.engine.text import duration

if TYPE_CHECKING:
    from argparse import Namespace


@contextmanager
def logging(options: "Namespace") -> Iterator[None]:
    """The engine's log: to a file in CRIU's shape, or plain to stderr.

    An error is written to the log file as well, because runtimes look there.
    """
    if options.log_file is None:
        logs.start(sys.stderr, verbosity=options.verbosity)
        try:
            yield
        finally:
            logs.stop()
        return
    path = placed(options.log_file, options)
    with translated("create the log", str(path)):
        stream = path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
    with stream:
        logs.start(stream, verbosity=options.verbosity, criu=True)
        try:
            yield
        except Error as error:
            logs.logger(f"torpor.{options.command}").error("%s", error)
            raise
        finally:
            logs.stop()


def placed(path: Path, options: "Namespace") -> Path:
    """A relative name starts at --work-dir."""
    base: Path = options.work_dir or Path()
    return base / path


def log_phases(verb: str, phases_s: Mapping[str, float], total_s: float) -> None:
    """A line for each phase."""
    log = logs.logger("torpor.phases")
    for name, seconds in phases_s.items():
        log.info("%s: %s took %s", verb, name, duration(seconds))
    log.info("%s: all took %s", verb, duration(total_s))


def pause_line(pause_s: Mapping[str, float]) -> str:
    """`pause: stop 0.2 ms, threads 0.9 ms, ...`."""
    return "pause: " + ", ".join(f"{name} {duration(s)}" for name, s in pause_s.items())


def write_pid(path: Path, pid: int) -> None:
    """A pid file, whole or not there."""
    with translated("write the pid", str(path)):
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(f"{pid}", encoding="ascii")
        scratch.rename(path)


def wait(pid: int) -> int:
    """Wait for a child, passing signals on to it; its exit status as a shell would say it.

    Raises:
        Vanished: it is not a child of ours.
    """

    def forward(number: int, _: object) -> None:
        os.kill(pid, number)

    forwarded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, forward) for number in forwarded}
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError as error:
        raise Vanished("the restored root is not our child", subject=f"task {pid}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
