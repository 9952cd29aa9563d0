# SPDX-License-Identifier: Apache-2.0
"""`criu restore`.

Facts (criu 4.2.1, tried): not detached, it waits for the root and exits with 0 however that ended.
The pid file must not exist; it is written after the stage post-restore, before anything runs. The
command of --exec-cmd replaces criu, and so is the parent of the root.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from torpor.engine import logs
from torpor.engine.cli.session import log_phases, wait
from torpor.engine.criu import joined, session
from torpor.engine.criu.asked import restore_options
from torpor.engine.criu.parse import BadUsage, CommandLine
from torpor.engine.criu.scripts import Notify, Scripts
from torpor.engine.criu.session import Session
from torpor.engine.errors import Error, Refused
from torpor.engine.images.failures import translated
from torpor.engine.options import RestoreOptions, RestoreReport

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Restore a tree."""
    _check(line)
    asked = restore_options(line)
    joined.places(line.all("join_ns"))
    begun = session.begin(line)
    try:
        report = carry_out(asked, begun)
    except Error as error:
        session.tell_failure(error, "Restoring FAILED.")
        return 1
    if line.flag("exec_cmd"):
        _become(line.program, begun.work_dir)
    if not line.flag("restore_detached"):
        wait(report.pid)
    return 0


def carry_out(asked: RestoreOptions, begun: Session, notify: Notify | None = None) -> RestoreReport:
    """Restore with all that a command line asks for beside; the tree runs on return.

    Raises: Error.
    """
    line = begun.line
    scripts = Scripts(paths=line.all("action_script"), work_dir=begun.work_dir,
                      images_dir=begun.images_dir, notify=notify)  # fmt: skip
    with ExitStack() as until:
        images = begun
        if line.flag("stream"):
            from torpor.engine.criu import stream

            images = until.enter_context(stream.received(begun))
        report = _restore(asked, images, scripts)
        if line.flag("log_pid"):
            _log_of_tasks(images)
    log_phases("restore", report.phases_s, report.total_s)
    for text in report.warnings:
        log.warning("%s", text)
    if line.flag("display_stats"):
        from torpor.engine.criu import statistics

        statistics.show_restore(begun.work_dir)
    if line.flag("auto_dedup"):
        _clear(begun.images_dir)
    log.info("Restore finished successfully. Tasks resumed.")
    scripts.run_leniently("post-resume", report.pid)
    return report


def _check(line: CommandLine) -> None:
    if not line.flag("exec_cmd"):
        return
    if not line.program:
        raise BadUsage("requires a command", subject="--exec-cmd", remedy="write it behind `--`")
    if line.flag("restore_detached"):
        raise BadUsage("cannot be used together", subject="--restore-detached and --exec-cmd",
                       remedy="leave out one of them")  # fmt: skip


def _restore(asked: RestoreOptions, begun: Session, scripts: Scripts) -> RestoreReport:
    from torpor.engine import api

    pidfile = begun.pidfile
    if pidfile is not None and pidfile.exists():
        raise Refused("the pid file is there already", subject=str(pidfile),
                      remedy="remove it")  # fmt: skip
    if begun.line.last("cpu_cap", "none") != "none":
        from torpor.engine.criu import cpuinfo

        cpuinfo.check(begun.images_dir, begun.line.last("cpu_cap"))

    def at_stage(stage: str, pid: int) -> None:
        if stage == "pre-resume":
            if pidfile is not None:
                _write_pid(pidfile, pid)
            scripts.run_leniently(stage, pid)
        else:
            scripts.run(stage, pid)

    scripts.run("pre-restore")
    joined.enter(begun.line.all("join_ns"))
    with ExitStack() as until:
        if begun.line.flag("lazy_pages"):
            from torpor.engine.criu import lazy

            asked = replace(asked, filled_by=until.enter_context(lazy.daemon(begun.work_dir)))
        return api.restore(
            replace(asked, images_dir=begun.images_dir, work_dir=begun.work_dir, at_stage=at_stage),
            progress=session.tell_progress,
        )


def _log_of_tasks(begun: Session) -> None:
    """A log beside ours for each task."""
    from torpor.engine.images.directory import ImageDirectory, Verify
    from torpor.engine.images.proto import criu_pb2 as pb

    name = begun.line.last("log_file")
    with ImageDirectory.open(begun.images_dir, verify=Verify.NOTHING) as images:
        for task in images.messages("pstree", pb.pstree_entry) if name else ():
            path = begun.placed(f"{name}.{task.pid}")
            with translated("create the log", str(path)):
                path.touch(mode=0o600)
                path.write_text(f"task {task.pid} restored; the steps are in {name}\n")


def _clear(directory: Path) -> None:
    from torpor.engine.images.dedup import clear
    from torpor.engine.images.directory import ImageDirectory, Verify

    with ImageDirectory.open(directory, verify=Verify.NOTHING) as images:
        clear(images)


def _write_pid(path: Path, pid: int) -> None:
    with translated("write the pid", str(path)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w", encoding="ascii") as stream:
            stream.write(f"{pid}")


def _become(program: list[str], work_dir: Path) -> NoReturn:
    """Execute the command of --exec-cmd in our place."""
    os.chdir(work_dir)
    with translated("execute", program[0]):
        os.execvp(program[0], program)  # noqa: S606 - what the user asked for
