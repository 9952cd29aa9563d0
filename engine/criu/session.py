# SPDX-License-Identifier: Apache-2.0
"""What all commands begin with: descriptors to close, the directories, the log.

Facts (criu 4.2.1, tried): the image directory must exist; logs, pid files and statistics go to the
work directory, which is the image directory if not given, and scripts and the command of
--exec-cmd run there. A log file is made anew with mode 0600. Lines have a time at -v3 and above.
"""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from torpor.engine import logs
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Error, Refused
from torpor.engine.images.failures import translated
from torpor.engine.options import Progress
from torpor.engine.version import CRIU_VERSION, VERSION

LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC

log = logs.logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A command line with its directories, and a log that has begun."""

    line: CommandLine
    images_dir: Path
    work_dir: Path

    def placed(self, name: str) -> Path:
        """A relative name starts in the work directory."""
        return self.work_dir / name

    @property
    def pidfile(self) -> Path | None:
        """Where --pidfile leads."""
        return self.placed(self.line.last("pidfile")) if self.line.flag("pidfile") else None


def begin(line: CommandLine) -> Session:
    """Close what is to be closed, find the directories, begin the log.

    Raises: Refused, Denied, KernelError.
    """
    for number in line.all("close"):
        try:
            os.close(int(number))
        except OSError:  # as criu: it is closed then
            continue
    _raise_limit()
    images = directory(line.last("images_dir", "."), "image directory")
    work = directory(line.last("work_dir"), "work directory") if line.last("work_dir") else images
    if line.flag("libdir"):
        directory(line.last("libdir"), "directory of plugins")
    session = Session(line=line, images_dir=images, work_dir=work)
    _start_log(session)
    return session


def _raise_limit() -> None:
    """As many descriptors as are permitted: each task has several images."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def directory(name: str, what: str) -> Path:
    """An absolute path of a directory, which must be there."""
    with translated("find", f"the {what} {name}"):
        path = Path(name).absolute()
    if not path.is_dir():
        raise Refused(f"the {what} is not there", subject=name,
                      remedy="make it, or give another")  # fmt: skip
    return path


def detach() -> None:
    """Leave the session and the output of whoever has started us."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.close(nowhere)


def verbosity_of(line: CommandLine) -> int:
    """CRIU's level of the log."""
    text = line.last("verbosity")
    return int(text) if text else logs.WARNINGS


def _start_log(session: Session) -> None:
    """Log to --log-file, in the work directory; otherwise to stderr."""
    line, verbosity = session.line, verbosity_of(session.line)
    if not line.flag("log_file"):
        logs.start(sys.stderr, verbosity=verbosity, criu=True)
    else:
        path = session.placed(line.last("log_file"))
        with translated("create the log", str(path)):
            fd = os.open(path, LOG_FLAGS, 0o600)
        stream = os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        logs.start(stream, verbosity=verbosity, criu=True)
    uname = os.uname()
    log.info("Version: %s (torpor %s)", CRIU_VERSION, VERSION)
    log.info("Running on %s %s %s %s %s", uname.nodename, uname.sysname, uname.release,
             uname.version, uname.machine)  # fmt: skip
    log.info("criu %s, images in %s, work in %s", describe(line), session.images_dir,
             session.work_dir)  # fmt: skip


def tell_failure(error: Error, summary: str = "") -> None:
    """What went wrong, and in a line of its own what failed with it, as CRIU ends a log."""
    log.error("%s", error)
    if summary:
        log.error("%s", summary)


def tell_progress(progress: Progress) -> None:
    """A line of the log for each step."""
    if progress.text:
        log.debug("%s: %s", progress.phase, progress.text)
    else:
        log.info("phase %s began", progress.phase)


def describe(line: CommandLine) -> str:
    """The command and its options, for the head of the log."""
    return " ".join([line.command, *(f"--{key.replace('_', '-')}" for key in sorted(line.values))])
