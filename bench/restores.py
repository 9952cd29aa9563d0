# SPDX-License-Identifier: Apache-2.0
"""A restore of large memory, until the workload answers.

A workload that has filled so much memory is dumped and ended, and restored from images on tmpfs;
the time ends when it has read words all over its memory and written an answer. criu is run as a
command, ours is called. *lazy* is ours with lazy memory; it stands beside the same of a workload
without memory. The floor is what two threads take to copy as much into fresh huge pages.
"""

import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.common import (
    MIB,
    Floor,
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
from torpor.engine import api
from torpor.engine.options import Lazy, RestoreOptions

GLANCE_S = 0.0002
SIZES_GIB = (1, 4)
GOAL, LAZY_GOAL_MS = 1 / 4, 20.0
Dump = Callable[[int, Path, bool], float]
Restore = Callable[[Path], None]


def rows(scratch: Path, rounds: int, sizes_gib: tuple[int, ...] = SIZES_GIB) -> Iterator[Row]:
    """Each size, all ways in turn; the first round is dropped."""
    program = compiled(scratch, "answer")
    for gib in sizes_gib:
        found: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            now = {
                "torpor": answered(program, gib << 10, dump_torpor, restore_torpor),
                "criu": answered(program, gib << 10, dump_criu, restore_criu),
                "floor": floor(program, gib << 10),
                "lazy": answered(program, gib << 10, dump_torpor, lazily),
                "empty": answered(program, 0, dump_torpor, lazily),
            }
            for name in now if number else ():
                found.setdefault(name, []).append(now[name])
        row = against(
            f"restore {gib} GiB", "until it answers", found["torpor"], found["criu"], GOAL
        )
        row.floor = Floor(
            value=statistics.median(found["floor"]),
            what="two threads that copy as much into fresh huge pages",
        )
        yield row
        lazy, empty = (statistics.median(found[name]) for name in ("lazy", "empty"))
        yield Row(case=f"restore {gib} GiB", measure=f"lazily, over an empty task's {empty:.1f}",
                  ours=lazy, criu=row.criu, score=lazy - empty, goal=LAZY_GOAL_MS,
                  samples=found)  # fmt: skip


def floor(program: Path, mib: int) -> float:
    """Milliseconds that two threads need for a copy."""
    warm(mib * MIB)
    done = subprocess.run([program, "floor", str(mib)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def answered(program: Path, mib: int, dump: Dump, restore: Restore) -> float:
    """Milliseconds from the begin of a restore to the answer."""
    answers = program.with_name("answers")
    images = fresh(program.parent)
    warm(2 * mib * MIB)
    with running(program, mib, answers) as pid:
        dump(pid, images, True)
    before = answers.stat().st_size
    warm(mib * MIB)
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
