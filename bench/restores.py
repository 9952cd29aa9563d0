# SPDX-License-Identifier: Apache-2.0
"""`make bench`: time of a restore until the workload answers, beside Debian's newest criu.

    restores.py [--rounds N] [--json FILE] [MIB ...]

A workload that has filled so much memory is dumped and ended, and restored from images on tmpfs;
the time ends when it has read words all over its memory and written an answer. criu is run as a
command, ours is called. *lazy* is ours with lazy memory; it stands beside the same of a workload
without memory. *floor* is what two threads take to copy as much into fresh huge pages.
A virtual machine may have given free memory back to its host: as much is touched before each
measured action. Medians of the rounds, in turn; the first one warms up and is dropped.
"""

import argparse
import ctypes
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench.run import PR_SET_CHILD_SUBREAPER, dump_criu, dump_torpor, end, fresh, warm  # noqa: E402
from tests.compat.criu_root import criu_root  # noqa: E402
from torpor.engine import api  # noqa: E402
from torpor.engine.options import Lazy, RestoreOptions  # noqa: E402

GLANCE_S = 0.0002
Restore = Callable[[Path], None]


def main() -> None:
    """Run the sizes and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--json", type=Path)
    options.add_argument("sizes", nargs="*", type=int, default=[1024, 4096])
    chosen = options.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print(f"machine: {platform.release()}, {os.cpu_count()} processors, medians, ms")
    print(
        f"{'MiB':>6} {'torpor':>8} {'criu':>8} {'ratio':>6} {'floor':>8} {'lazy':>8} {'empty':>8}"
    )
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="torpor-bench-") as scratch:
        program = Path(scratch) / "answer"
        subprocess.run(
            ["cc", "-O2", "-pthread", "-o", program, ROOT / "bench/workloads/answer.c"], check=True
        )
        for mib in chosen.sizes:
            rows.append(measured(program, mib, chosen.rounds))
            print("{mib:8} {torpor:8.1f} {criu:8.1f} {ratio:8.2f} {floor:8.1f} {lazy:8.1f} "
                  "{empty:8.1f}".format(**rows[-1]), flush=True)  # fmt: skip
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


def measured(program: Path, mib: int, rounds: int) -> dict[str, float]:
    """All measures of one size."""
    found: dict[str, list[float]] = {
        name: [] for name in ("torpor", "criu", "floor", "lazy", "empty")
    }
    for number in range(rounds + 1):
        now = {
            "torpor": answered(program, mib, dump_torpor, ours),
            "criu": answered(program, mib, dump_criu, theirs),
            "floor": floor(program, mib),
            "lazy": answered(program, mib, dump_torpor, lazily),
            "empty": answered(program, 0, dump_torpor, lazily),
        }
        for name in now if number else ():
            found[name].append(now[name])
    row = {name: statistics.median(times) for name, times in found.items()}
    return {"mib": mib, "ratio": row["torpor"] / row["criu"], **row}


def floor(program: Path, mib: int) -> float:
    """Milliseconds that two threads need for a copy."""
    warm(mib << 20)
    done = subprocess.run([program, "floor", str(mib)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def answered(
    program: Path, mib: int, dump: Callable[[int, Path, bool], float], restore: Restore
) -> float:
    """Milliseconds from the begin of a restore to the answer."""
    answers, words = program.with_name("answers"), program.with_name("words")
    images = fresh(program.parent)
    with words.open("w") as out:
        process = subprocess.Popen(
            [program, str(mib), answers],
            stdout=out,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    while "ready" not in words.read_text():
        time.sleep(0.01)
    dump(process.pid, images, True)
    end(process.pid)
    before = answers.stat().st_size
    warm(mib << 20)
    begin = time.perf_counter()
    try:
        restore(images)
        os.kill(process.pid, signal.SIGUSR1)
        while answers.stat().st_size == before:
            time.sleep(GLANCE_S)
        return (time.perf_counter() - begin) * 1e3
    finally:
        end(process.pid)


def ours(images: Path) -> None:
    """Ours, everything before the workload runs."""
    api.restore(RestoreOptions(images_dir=images))


def lazily(images: Path) -> None:
    """Ours, large memory later."""
    api.restore(RestoreOptions(images_dir=images, lazy=Lazy.ON))


def theirs(images: Path) -> None:
    """Debian's criu."""
    command = criu_root().criu(
        "restore", "-d", "-D", str(images), "--network-lock", "skip", "-o", "restore.log"
    )
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
