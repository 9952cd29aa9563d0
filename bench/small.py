# SPDX-License-Identifier: Apache-2.0
"""Frozen time and restore of trees, threads, descriptors and mappings.

The pause is what each engine reports as frozen (stats-dump of CRIU, DumpReport of ours) with the
workload left running; a restore is timed from outside, criu's as a command, ours as a call. Beside
it stands what of our pause is spent in C (`bench.incalls`), and what stopping, asking and letting
go of as many tasks costs in C alone: no dump stops them for less.
"""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.common import (
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
)
from bench.incalls import timed

# name: program's words, goals of pause and restore (None: no goal)
CASES: dict[str, tuple[tuple[str, int], float, float | None]] = {
    "sleeper": (("sleeper", 0), 1, None),
    "tree-100": (("tree", 100), 1, 2),
    "threads-500": (("threads", 500), 1, None),
    "files-1000": (("files", 1000), 1, 2),
    "mappings-2000": (("mappings", 2000), 1.5, 2),
}
SETTLE_S = 0.2
ENGINES: dict[str, tuple[Dump, Restore]] = {
    "torpor": (dump_torpor, restore_torpor),
    "criu": (dump_criu, restore_criu),
}


def rows(scratch: Path, rounds: int) -> Iterator[Row]:
    """Both engines in turn; the first round is dropped."""
    program, stopper = compiled(scratch, "load"), compiled(scratch, "stopper")
    for name, (words, pause_goal, restore_goal) in CASES.items():
        pauses: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        restores: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        floors = []
        for number in range(rounds + 1):
            for engine, (dump, restore) in ENGINES.items():
                pause = paused(program, words, scratch, dump)
                took = restored(program, words, scratch, dump, restore)
                if number:
                    pauses[engine].append(pause * 1e3)
                    restores[engine].append(took * 1e3)
            floors.append(called(program, words, scratch) * 1e3)
        row = against(name, "frozen", pauses["torpor"], pauses["criu"], pause_goal)
        least = stopped(program, words, stopper)
        row.floor = Floor(
            value=min(floors),
            what=f"in calls of C, the rest is Python; to stop and let go of its tasks {least:.2g}",
        )
        yield row
        yield against(name, "restore", restores["torpor"], restores["criu"], restore_goal)


def paused(program: Path, words: tuple[str, int], scratch: Path, dump: Dump) -> float:
    """Seconds that a workload stood still which runs on."""
    with running(program, *words) as pid:
        time.sleep(SETTLE_S)
        return dump(pid, fresh(scratch), False)


def called(program: Path, words: tuple[str, int], scratch: Path) -> float:
    """Seconds of such a pause that are spent in C."""
    with running(program, *words) as pid, timed() as calls:
        time.sleep(SETTLE_S)
        dump_torpor(pid, fresh(scratch), False)
        return calls.spent_s


def restored(
    program: Path, words: tuple[str, int], scratch: Path, dump: Dump, restore: Restore
) -> float:
    """Seconds of a restore, after a dump by the same engine."""
    images = fresh(scratch)
    with running(program, *words) as pid:
        time.sleep(SETTLE_S)
        dump(pid, images, True)
    with ended(pid):
        begin = time.perf_counter()
        restore(images)
        return time.perf_counter() - begin


def stopped(program: Path, words: tuple[str, int], stopper: Path) -> float:
    """Milliseconds of the least that a dump does with its tasks."""
    with running(program, *words) as pid:
        time.sleep(SETTLE_S)
        done = subprocess.run([stopper, str(pid)], check=True, capture_output=True, text=True)
        return float(done.stdout)
