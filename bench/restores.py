# SPDX-License-Identifier: Apache-2.0
"""A restore of large memory, until the workload answers.

A workload that has filled so much memory is dumped and ended, and restored from images on tmpfs;
the time ends when it has read words all over its memory and written an answer. criu is run as a
command, ours is called. The goal is about the best of both: memory that is filled while the
workload runs (`--lazy` here, `criu lazy-pages` there); the same with memory that is filled before
stands beside it, and a workload without memory, after as much was touched and freed. The floor of
that is what two threads take to copy as much into fresh huge pages.
"""

import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from operator import truediv
from pathlib import Path

from bench.common import (
    MIB,
    QUIET,
    Dump,
    Floor,
    Restore,
    Row,
    against,
    compiled,
    dump_criu,
    dump_torpor,
    ended,
    fresh,
    restore_criu,
    restore_torpor,
    running,
    warm,
)
from tests.compat.criu_root import criu_root
from torpor.engine import api
from torpor.engine.options import Lazy, RestoreOptions

GLANCE_S = 0.0002
SIZES_GIB = (1, 4)
GOAL, LAZY_GOAL_MS = 1 / 4, 20.0


def rows(scratch: Path, rounds: int, sizes_gib: tuple[int, ...] = SIZES_GIB) -> Iterator[Row]:
    """Each size, all ways in turn; the first round is dropped."""
    program = compiled(scratch, "answer")
    for gib in sizes_gib:
        found: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            now = {
                "torpor": answered(program, gib << 10, dump_torpor, restore_torpor),
                "criu": answered(program, gib << 10, dump_criu, restore_criu),
                "lazy": answered(program, gib << 10, dump_torpor, lazily),
                "criu lazy": answered(program, gib << 10, dump_criu, criu_lazily),
                "floor": floor(program, gib << 10),
                "empty": answered(program, 0, dump_torpor, lazily, touched=gib << 10),
            }
            for name in now if number else ():
                found.setdefault(name, []).append(now[name])
        yield from told(f"restore {gib} GiB", found)


def told(case: str, found: dict[str, list[float]]) -> Iterator[Row]:
    """The rows of a size."""
    middle = {name: statistics.median(times) for name, times in found.items()}
    best = "lazy" if middle["lazy"] < middle["torpor"] else "torpor"
    theirs = "criu lazy" if middle["criu lazy"] < middle["criu"] else "criu"
    row = against(case, f"until it answers: {best}, {theirs}", found[best], found[theirs], GOAL)
    row.floor = Floor(value=middle["empty"], what="the same of a workload without memory")
    yield row
    yield Row(case=case, measure=f"filled before; two copying threads {middle['floor']:.0f}",
              ours=middle["torpor"], criu=middle["criu"],
              score=statistics.median(map(truediv, found["torpor"], found["criu"])))  # fmt: skip
    yield Row(case=case, measure=f"lazily, over an empty task's {middle['empty']:.1f}",
              ours=middle["lazy"], criu=middle["criu lazy"], goal=LAZY_GOAL_MS,
              score=middle["lazy"] - middle["empty"], samples=found)  # fmt: skip


def floor(program: Path, mib: int) -> float:
    """Milliseconds that two threads need for a copy."""
    warm(mib * MIB)
    done = subprocess.run([program, "floor", str(mib)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def answered(
    program: Path, mib: int, dump: Dump, restore: Restore, touched: int | None = None
) -> float:
    """Milliseconds from the begin of a restore to the answer.

    Right before, memory is touched and freed: as much as the workload has, or ``touched``.
    """
    least = mib if touched is None else touched
    answers = program.with_name("answers")
    images = fresh(program.parent)
    warm(least * MIB)
    with running(program, mib, answers) as pid:
        dump(pid, images, True)
    before = answers.stat().st_size
    warm(least * MIB // 2)  # touches twice that
    with ended(pid):
        begin = time.perf_counter()
        restore(images)
        os.kill(pid, signal.SIGUSR1)
        while answers.stat().st_size == before:
            time.sleep(GLANCE_S)
        return (time.perf_counter() - begin) * 1e3


def lazily(images: Path) -> None:
    """Ours, large memory later."""
    api.restore(RestoreOptions(images_dir=images, lazy=Lazy.ON))


def criu_lazily(images: Path) -> None:
    """Debian's criu with its own filling process, which ends with the workload."""
    common = ("-D", str(images), "-o")
    command = criu_root().criu("lazy-pages", *common, "lazy-pages.log")
    subprocess.Popen(command, **QUIET)  # reaped with all else (`bench.common.end`)
    while not (images / "lazy-pages.socket").exists():
        time.sleep(GLANCE_S)
    command = criu_root().criu("restore", "-d", "--lazy-pages", *common, "restore.log",
                               "--network-lock", "skip")  # fmt: skip
    subprocess.run(command, check=True)
