# SPDX-License-Identifier: Apache-2.0
"""The last stop of a pre-copy of a tree that writes its memory.

Beside it stands the stop of the same program without memory, in the same run, and the same memory
copied while it stands still. The tasks run on.
"""

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from bench.common import MIB, Row, compiled, running, warm
from torpor.engine import api
from torpor.engine.options import After, DumpOptions, DumpReport, MemoryWay

SIZE_MIB = 1024
PERCENT = (0, 1, 10, 50)
GOAL_MS = 5.0
SETTLE_S = 0.3


def rows(scratch: Path, rounds: int) -> Iterator[Row]:
    """A row for each rate of writing and size of pages."""
    program = compiled(scratch, "writer")
    base_ms = median_ms(stops(program, 0, 0, 0, MemoryWay.FROZEN, rounds))
    for huge in (0, 1):
        for percent in PERCENT:
            copied = median_ms(stops(program, SIZE_MIB, percent, huge, MemoryWay.FROZEN, 2))
            found = stops(program, SIZE_MIB, percent, huge, MemoryWay.PRECOPY, rounds)
            pages = "huge" if huge else "4 KiB"
            rounds_told = "+".join(f"{one.copied_bytes / MIB:.0f}" for one in found[-1].rounds)
            yield Row(case="pre-copy 1 GiB", ours=median_ms(found),
                      measure=f"{pages}, {percent} %/s, {rounds_told} MiB",
                      score=median_ms(found) - base_ms,
                      goal=GOAL_MS if percent == 1 and not huge else None,
                      samples={"without memory": [base_ms], "frozen": [copied]})  # fmt: skip


def median_ms(reports: list[DumpReport]) -> float:
    """Of the pauses."""
    return statistics.median(one.frozen_s for one in reports) * 1e3


def stops(
    program: Path, mib: int, percent: int, huge: int, way: MemoryWay, rounds: int
) -> list[DumpReport]:
    """Dump one program again and again; the first is dropped."""
    images, reports = program.with_name("images"), []
    with running(program, mib, percent, huge) as pid:
        for _ in range(rounds + 1):
            time.sleep(SETTLE_S)
            warm(mib * MIB)
            asked = DumpOptions(pid=pid, images_dir=images, after=After.CONTINUE, memory=way)
            reports += api.dump([asked])
            shutil.rmtree(images)
    return reports[1:]
