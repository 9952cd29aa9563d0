# SPDX-License-Identifier: Apache-2.0
"""`torpor plan`: of a PID what a dump would save or refuse, of images what a restore would do."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from torpor.engine.cli import output, session
from torpor.engine.inspect.lines import DIM, HEADING, NAME, WARN, line

STYLES = {"heading": HEADING, "phase": DIM, "step": NAME, "warning": WARN}


def run(options: Namespace) -> int:
    """Print a plan; nothing is touched."""
    if options.dir is None and options.target.isdecimal():
        return _dump(options)
    return show_restore(Path(options.target or options.dir), as_json=options.json)


def _dump(options: Namespace) -> int:
    from torpor.engine import api
    from torpor.engine.options import After, DumpOptions, MemoryWay, TcpPolicy

    with session.logging(options):
        text = api.plan_dump(DumpOptions(
            pid=int(options.target), images_dir=Path("images"),
            tcp=TcpPolicy.CLOSE if options.tcp_close else TcpPolicy.REFUSE,
            shell_job=options.shell_job, ghost_limit_bytes=options.ghost_limit,
            after=After.CONTINUE if options.leave_running else After.STOP,
            memory=MemoryWay(options.memory),
        ))  # fmt: skip
    if options.json:
        output.emit_json({"pid": int(options.target), "plan": text.splitlines()})
    else:
        output.emit_lines(line(one) for one in text.splitlines())
    return 0


def show_restore(path: Path, *, as_json: bool) -> int:
    """The plan of a restore."""
    from torpor.engine.inspect.archive import directory_of
    from torpor.engine.inspect.plan import plan_lines, restore_plan

    with directory_of(path) as directory:
        plan = replace(restore_plan(directory), path=str(path))
    if as_json:
        output.emit_json(plan)
    else:
        output.emit_lines(line((text, STYLES.get(kind, ""))) for text, kind in plan_lines(plan))
    return 0
