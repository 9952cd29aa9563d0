# SPDX-License-Identifier: Apache-2.0
"""`criu dump`, `restore` and `check` by way of torpor.engine.api.

A command is in here by its line in COMMANDS (swrk, pre-dump and others will be).
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from torpor.engine import logs
from torpor.engine.cli.session import log_phases, wait, write_pid
from torpor.engine.criu.entry import FAILED, describe
from torpor.engine.criu.options import CHECKS
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Refused
from torpor.engine.images.failures import translated
from torpor.engine.inherit import parse_inherit
from torpor.engine.options import After, DumpOptions, RestoreOptions, TcpPolicy
from torpor.engine.text import count, duration, parse_size, size
from torpor.engine.version import CRIU_VERSION, VERSION

DEFAULT_TIMEOUT_S = 10.0
CRIU_GHOST_LIMIT = 1 << 20

log = logs.logger(__name__)


def dump(line: CommandLine) -> int:
    """`criu dump`."""
    _start_log(line)
    from torpor.engine import api

    (report,) = api.dump([dump_options(line)])
    log_phases("dump", report.phases_s, report.total_s)
    for text in report.warnings:
        log.warning("%s", text)
    log.info("%s, %s dumped, frozen %s", count(report.tasks, "task"),
             size(report.memory_bytes), duration(report.frozen_s))  # fmt: skip
    log.info("Dumping finished successfully")
    return 0


def restore(line: CommandLine) -> int:
    """`criu restore`; not detached, it waits for the root and exits as it does."""
    _start_log(line)
    from torpor.engine import api

    options = restore_options(line)
    if line.flag("pidfile") and _placed(line, line.last("pidfile")).exists():
        raise Refused("the pid file is there already", subject=line.last("pidfile"),
                      remedy="remove it")  # fmt: skip
    report = api.restore(options)
    log_phases("restore", report.phases_s, report.total_s)
    for text in report.warnings:
        log.warning("%s", text)
    if line.flag("pidfile"):
        write_pid(_placed(line, line.last("pidfile")), report.pid)
    log.info("Restore finished successfully. Tasks resumed.")
    return 0 if line.flag("restore_detached") else wait(report.pid)


def check(line: CommandLine) -> int:
    """`criu check`: what is needed, with --extra also what is not, or one feature."""
    logs.start(sys.stderr, verbosity=_verbosity(line), criu=True)
    from torpor.engine.kernel.features import FEATURES, probe_all

    wanted = line.last("feature")
    if wanted and wanted not in CHECKS:
        raise Refused("unknown feature", subject=wanted, remedy=f"one of {', '.join(CHECKS)}")
    more = line.flag("extra") or line.flag("experimental") or line.flag("all")
    chosen = [f for f in FEATURES
              if (f.name == CHECKS[wanted] if wanted else f.needed or more)]  # fmt: skip
    missing = [f for f in probe_all(chosen) if not f.works]
    for one in missing:
        log.error("%s is missing: %s; %s", one.name, one.cause, one.remedy)
    if wanted:
        sys.stdout.write(f"{wanted} is {'not ' if missing else ''}supported\n")
    elif not missing:
        sys.stdout.write("Looks good.\n")
    return FAILED if missing else 0


def dump_options(line: CommandLine) -> DumpOptions:
    """Options of the engine from CRIU's."""
    if not line.flag("tree"):
        raise Refused("which tree to dump is not said", subject="criu dump", remedy="give -t PID")
    return DumpOptions(
        pid=_number(line, "tree"),
        images_dir=_images(line),
        after=After.CONTINUE if line.flag("leave_running") else After.STOP,
        tcp=TcpPolicy.CLOSE if line.flag("tcp_close") else TcpPolicy.REFUSE,
        shell_job=line.flag("shell_job"),
        freezer_cgroups=tuple(Path(path) for path in line.all("freeze_cgroup")),
        ghost_limit_bytes=_size(line) if line.flag("ghost_limit") else CRIU_GHOST_LIMIT,
        timeout_s=_number(line, "timeout") if line.flag("timeout") else DEFAULT_TIMEOUT_S,
    )


def restore_options(line: CommandLine) -> RestoreOptions:
    """Options of the engine from CRIU's."""
    inherit: dict[str, int] = {}
    for text in line.all("inherit_fd"):
        try:
            name, fd = parse_inherit(text)
        except ValueError as error:
            raise Refused("not of the form fd[N]:NAME", subject=f"--inherit-fd {text}") from error
        inherit[name] = fd
    return RestoreOptions(
        images_dir=_images(line), inherit=inherit,
    )  # fmt: skip


def _start_log(line: CommandLine) -> None:
    """Log to --log-file, in the work directory; otherwise to stderr."""
    verbosity = _verbosity(line)
    if not line.flag("log_file"):
        logs.start(sys.stderr, verbosity=verbosity, criu=True)
    else:
        path = _placed(line, line.last("log_file"))
        with translated("create the log", str(path)):
            stream = path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
        logs.start(stream, verbosity=verbosity, criu=True)
    log.info("Version: %s (torpor %s)", CRIU_VERSION, VERSION)
    log.info("criu %s", describe(line))


def _images(line: CommandLine) -> Path:
    """The image directory, which must be there: as with CRIU."""
    path = Path(line.last("images_dir", "."))
    if not path.is_dir():
        raise Refused("is not a directory", subject=str(path), remedy="make it, or give another")
    return path


def _placed(line: CommandLine, name: str) -> Path:
    return Path(line.last("work_dir") or line.last("images_dir", ".")) / name


def _verbosity(line: CommandLine) -> int:
    return _number(line, "verbosity") if line.last("verbosity") else logs.WARNINGS


def _number(line: CommandLine, key: str) -> int:
    text = line.last(key)
    if not text.isdecimal():
        raise Refused("is not a number", subject=f"--{key.replace('_', '-')} {text}")
    return int(text)


def _size(line: CommandLine) -> int:
    text = line.last("ghost_limit")
    try:
        return parse_size(text)
    except ValueError as error:
        raise Refused("is not a size", subject=f"--ghost-limit {text}") from error


COMMANDS: Mapping[str, Callable[[CommandLine], int]] = {
    "dump": dump, "restore": restore, "check": check,
}  # fmt: skip
