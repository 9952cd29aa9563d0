# SPDX-License-Identifier: Apache-2.0
"""`make bench`, pre-copy: the last stop of a tree that writes its memory, and each round before it.

    precopy.py [--rounds N] [--mib N] [--json FILE]

Beside it stands the stop of the same program without memory, in the same run, and the same memory
copied while it stands still. Medians; the first of each is dropped. The tasks run on.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench.run import warm  # noqa: E402
from torpor.engine import api  # noqa: E402
from torpor.engine.options import After, DumpOptions, DumpReport, MemoryWay  # noqa: E402

PERCENT = (0, 1, 10, 50)
GOAL_MS = 5.0
SETTLE_S = 0.3


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--mib", type=int, default=1024)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="torpor-bench-") as scratch:
        program = Path(scratch) / "writer"
        source = ROOT / "bench/workloads/writer.c"
        subprocess.run(["cc", "-O2", "-o", program, source], check=True)
        print(f"machine: {platform.release()}, {os.cpu_count()} processors")
        results = table(program, chosen.mib, chosen.rounds)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1))


def table(program: Path, mib: int, rounds: int) -> list[dict[str, object]]:
    """A row for each rate of writing and size of pages."""
    without = stops(program, 0, 0, 0, MemoryWay.FROZEN, rounds)
    base_ms = median_ms(without)
    print(f"without memory: {base_ms:.1f} ms")
    print(
        f"{'pages':>6} {'written':>9} {'frozen way':>11} {'pre-copy':>9} {'more than without':>18}"
    )
    rows: list[dict[str, object]] = []
    for huge in (0, 1):
        for percent in PERCENT:
            copied = stops(program, mib, percent, huge, MemoryWay.FROZEN, 2)
            found = stops(program, mib, percent, huge, MemoryWay.PRECOPY, rounds)
            last_ms = median_ms(found)
            pages = "huge" if huge else "4 KiB"
            goal = f", goal {GOAL_MS:g}" if percent == 1 and not huge else ""
            print(f"{pages:>6} {percent:>5} %/s {median_ms(copied):>8.1f} ms {last_ms:>6.1f} ms "
                  f"{last_ms - base_ms:>15.1f} ms{goal}")  # fmt: skip
            print_rounds(found[-1])
            rows.append({"pages": pages, "percent": percent, "without_ms": base_ms,
                         "frozen_ms": median_ms(copied), "precopy_ms": last_ms,
                         "pause_s": dict(found[-1].pause_s),
                         "rounds": [[one.copied_bytes, one.seconds, one.dirty_bytes]
                                    for one in found[-1].rounds]})  # fmt: skip
    return rows


def print_rounds(report: DumpReport) -> None:
    """What each round of the last dump did, and why there were no more."""
    for one in report.rounds:
        print(f"         round {one.number}: {one.copied_bytes / 2**20:8.1f} MiB in "
              f"{one.seconds * 1e3:7.1f} ms, {one.dirty_bytes / 2**20:6.1f} MiB left")  # fmt: skip
    print(f"         {report.memory_reason}", flush=True)


def median_ms(reports: list[DumpReport]) -> float:
    """Of the pauses."""
    return statistics.median(one.frozen_s for one in reports) * 1e3


def stops(
    program: Path, mib: int, percent: int, huge: int, way: MemoryWay, rounds: int
) -> list[DumpReport]:
    """Dump one program again and again."""
    words, images = program.with_name("words"), program.with_name("images")
    with words.open("w") as out:
        process = subprocess.Popen(
            [program, str(mib), str(percent), str(huge)],
            stdout=out,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        while "ready" not in words.read_text():
            time.sleep(0.01)
        reports = []
        for _ in range(rounds):
            time.sleep(SETTLE_S)
            warm(mib << 20)
            asked = DumpOptions(
                pid=process.pid, images_dir=images, after=After.CONTINUE, memory=way
            )
            reports += api.dump([asked])
            shutil.rmtree(images)
        return reports[1:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
