# SPDX-License-Identifier: Apache-2.0
"""`torpor restore`."""

import sys
from argparse import Namespace

from torpor.engine import api
from torpor.engine.cli import output, session
from torpor.engine.cli.progress import shown
from torpor.engine.inspect.lines import WARN, Line, line, plain
from torpor.engine.options import ClockPolicy, Lazy, RestoreOptions, RestoreReport
from torpor.engine.text import count, duration, size


def run(options: Namespace) -> int:
    """Restore; not detached, wait for the root and exit as it does."""
    if options.plan:
        from torpor.engine.cli.plan import show_restore

        return show_restore(options.images_dir, as_json=options.json)
    with session.logging(options):
        with shown(wanted=not options.json) as progress:
            report = api.restore(asked(options), progress=progress)
        session.log_phases("restore", report.phases_s, report.total_s)
        if options.pidfile is not None:
            session.write_pid(session.placed(options.pidfile, options), report.pid)
        if options.restore_detached:
            _tell(report, as_json=options.json)
            return 0
        for text in report.warnings:
            print(plain(line("warning: ", text)), file=sys.stderr)
        status = session.wait(report.pid)
    if options.json:
        output.emit_json({**output.jsonable(report), "exit_status": status})
    return status


def asked(options: Namespace) -> RestoreOptions:
    """Options of the engine from those of the command line."""
    return RestoreOptions(
        images_dir=options.images_dir,
        inherit=dict(options.inherit_fd), shell_job=options.shell_job, timeout_s=options.timeout,
        lazy=Lazy(options.lazy), clocks=ClockPolicy(options.clocks),
    )  # fmt: skip


def _tell(report: RestoreReport, *, as_json: bool) -> None:
    if as_json:
        output.emit_json(report)
    else:
        output.emit_lines(lines(report))


def lines(report: RestoreReport) -> list[Line]:
    """The report for people."""
    return [
        line(
            f"restored {count(report.tasks, 'task')}, {count(report.threads, 'thread')}, "
            f"{size(report.memory_bytes)} of memory in {duration(report.total_s)}; "
            f"the root is task {report.pid}"
        ),
        *_later(report),
        *(line(("warning: ", WARN), text) for text in report.warnings),
    ]


def _later(report: RestoreReport) -> list[Line]:
    if not report.lazy_bytes:
        return []
    return [line(f"{size(report.lazy_bytes)} more are filled while it runs")]
