# SPDX-License-Identifier: Apache-2.0
"""`criu dump`."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.engine import logs
from torpor.engine.cli.session import log_phases, pause_line
from torpor.engine.criu import session
from torpor.engine.criu.asked import dump_options
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.scripts import Notify, Scripts
from torpor.engine.criu.session import Session
from torpor.engine.errors import Error, Refused
from torpor.engine.options import DumpOptions, DumpReport
from torpor.engine.text import count, duration, size

if TYPE_CHECKING:
    from torpor.engine.criu.stream import Streamer

SCRIPT_FAILED = 255

log = logs.logger(__name__)


class AfterDumpFailed(Refused):
    """A script for the stage post-dump failed; the tasks run on."""


def run(line: CommandLine) -> int:
    """Dump one tree."""
    asked = dump_options(line)
    begun = session.begin(line)
    try:
        carry_out(asked, begun)
    except AfterDumpFailed as error:
        session.tell_failure(error, "Dumping FAILED.")
        return SCRIPT_FAILED
    except Error as error:
        session.tell_failure(error, "Dumping FAILED.")
        return 1
    return 0


def carry_out(asked: DumpOptions, begun: Session, notify: Notify | None = None) -> None:
    """Dump with all that a command line asks for beside.

    Raises: Error; AfterDumpFailed.
    """
    line = begun.line
    scripts = Scripts(paths=line.all("action_script"), work_dir=begun.work_dir,
                      images_dir=begun.images_dir, notify=notify)  # fmt: skip
    asked = replace(asked, images_dir=begun.images_dir, work_dir=begun.work_dir, hold=scripts.any)
    with ExitStack() as until:
        send = None
        if line.flag("stream"):
            from torpor.engine.criu import stream

            streamer, folder = until.enter_context(stream.connected(begun, stream.CAPTURE))
            asked = replace(asked, images_dir=folder, hold=True)
            send = partial(_send, line, streamer, folder)
        elif line.flag("lazy_pages"):
            from torpor.engine.criu import lazydump

            serve = until.enter_context(lazydump.server(line, asked.pid, scripts))
            asked = replace(asked, serve=serve)
        else:
            asked = with_server(asked, line)
        scripts.run("pre-dump", asked.pid)
        externals = asked.external | scripts.externals()
        report = _dump(replace(asked, external=externals), scripts, send)
    if line.flag("cpu_cap") and not line.flag("stream"):
        from torpor.engine.criu import cpuinfo

        cpuinfo.write_if_wanted(begun.images_dir, line.last("cpu_cap"))
    tell(report)
    if line.flag("display_stats"):
        from torpor.engine.criu import statistics

        statistics.show_dump(begun.work_dir)
    log.info("Dumping finished successfully")


def with_server(asked: DumpOptions, line: CommandLine) -> DumpOptions:
    """Connected to the page server, if pages go to one."""
    if not line.flag("page_server"):
        return asked
    from torpor.engine.criu import network

    return replace(asked, page_server=network.connect(line))


def _send(line: CommandLine, streamer: "Streamer", folder: Path) -> None:
    from torpor.engine.criu import cpuinfo, stream

    if line.flag("cpu_cap"):
        cpuinfo.write_if_wanted(folder, line.last("cpu_cap"))
    stream.send_all(streamer, folder)


def _dump(
    asked: DumpOptions, scripts: Scripts, send: Callable[[], None] | None = None
) -> DumpReport:
    """Dump; ``send`` gives the images away before the tasks are let go."""
    from torpor.engine import api

    def commit(_: object) -> None:
        if send is not None:
            send()
        try:
            scripts.run("post-dump", asked.pid)
        except Refused as error:
            raise AfterDumpFailed(
                error.what, subject=error.subject, cause=error.cause, remedy=error.remedy
            ) from error

    (report,) = api.dump(
        [asked], commit=commit if asked.hold else None, progress=session.tell_progress
    )
    return report


def tell(report: DumpReport) -> None:
    """What was done, in the log."""
    log_phases("dump", report.phases_s, report.total_s)
    for text in report.warnings:
        log.warning("%s", text)
    log.info("%s, %s, %s, %s dumped, frozen %s", count(report.tasks, "task"),
             count(report.threads, "thread"), count(report.descriptors, "descriptor"),
             size(report.memory_bytes), duration(report.frozen_s))  # fmt: skip
    log.info("%s", pause_line(report.pause_s))
    if report.skipped_bytes:
        log.info("%s of it are in earlier dumps", size(report.skipped_bytes))
