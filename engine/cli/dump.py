# SPDX-License-Identifier: Apache-2.0
"""`torpor dump`."""

from argparse import Namespace

from torpor.engine import api
from torpor.engine.cli import output, session
from torpor.engine.cli.progress import shown
from torpor.engine.inspect.lines import WARN, Line, line
from torpor.engine.options import After, DumpOptions, DumpReport, MemoryWay, Round, TcpPolicy
from torpor.engine.text import count, duration, size


def run(options: Namespace) -> int:
    """Dump one tree and say what was done."""
    with session.logging(options), shown(wanted=not options.json) as progress:
        (report,) = api.dump([asked(options)], progress=progress)
        session.log_phases("dump", report.phases_s, report.total_s)
    if options.json:
        output.emit_json(report)
    else:
        output.emit_lines(lines(report, left_running=options.leave_running))
    return 0


def asked(options: Namespace) -> DumpOptions:
    """Options of the engine from those of the command line."""
    return DumpOptions(
        pid=options.tree if options.pid is None else options.pid,
        images_dir=options.images_dir,
        after=After.CONTINUE if options.leave_running else After.STOP,
        tcp=TcpPolicy.CLOSE if options.tcp_close else TcpPolicy.REFUSE,
        shell_job=options.shell_job,
        freezer_cgroups=tuple(options.freeze_cgroup),
        ghost_limit_bytes=options.ghost_limit,
        timeout_s=options.timeout,
        memory=MemoryWay(options.memory),
    )


def round_text(one: Round) -> str:
    """A round of a pre-copy."""
    return (
        f"round {one.number}: {size(one.copied_bytes)} copied in {duration(one.seconds)}, "
        f"{size(one.dirty_bytes)} written meanwhile"
    )


def lines(report: DumpReport, *, left_running: bool) -> list[Line]:
    """The report for people."""
    held = (
        f"{count(report.tasks, 'task')}, {count(report.threads, 'thread')}, "
        f"{count(report.descriptors, 'descriptor')}, {size(report.memory_bytes)} of memory"
    )
    fate = "they run on" if left_running else "they were ended"
    return [
        line(f"dumped {held} to {report.images_dir} ({size(report.image_bytes)})"),
        line(f"frozen {duration(report.frozen_s)}, {duration(report.total_s)} in all; {fate}"),
        line(session.pause_line(report.pause_s)),
        line(f"memory: {report.memory_way.value}, {report.memory_reason}"),
        *(line(f"  {text}") for text in map(round_text, report.rounds)),
        *(line(("warning: ", WARN), text) for text in report.warnings),
    ]
