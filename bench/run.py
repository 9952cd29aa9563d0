# SPDX-License-Identifier: Apache-2.0
"""`make bench`: pause and restore time beside Debian's newest criu, in one run, A B A B.

    run.py [--rounds N] [--json FILE] [NAME ...]

Images are on tmpfs for both. The pause is what each engine reports as frozen (stats-dump of
CRIU, DumpReport of ours) with the workload left running; restore is the time of the command's
restore itself. Medians of the rounds; the first round warms up and is dropped.
"""

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import platform
import shutil
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

from tests.compat.criu_root import criu_root  # noqa: E402
from torpor.engine import api  # noqa: E402
from torpor.engine.images.directory import ImageDirectory, Verify  # noqa: E402
from torpor.engine.images.stats import read_dump_stats  # noqa: E402
from torpor.engine.options import After, DumpOptions, RestoreOptions  # noqa: E402

CASES = {
    "sleeper": ("sleeper", 0), "tree-100": ("tree", 100), "threads-500": ("threads", 500),
    "files-1000": ("files", 1000), "mappings-2000": ("mappings", 2000),
    "memory-1GiB": ("memory", 1024),
}  # fmt: skip
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Run the cases and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--json", type=Path)
    options.add_argument("names", nargs="*", default=list(CASES))
    chosen = options.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    results = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="torpor-bench-") as scratch:
        program = Path(scratch) / "load"
        subprocess.run(
            ["cc", "-O2", "-pthread", "-o", program, ROOT / "bench/workloads/load.c"], check=True
        )
        print(f"machine: {platform.release()}, {os.cpu_count()} processors")
        print(f"{'case':14} {'measure':8} {'torpor ms':>10} {'criu ms':>10} {'ratio':>7}")
        for name in chosen.names:
            results += case(name, program, Path(scratch), chosen.rounds)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1))


def case(name: str, program: Path, scratch: Path, rounds: int) -> list[dict[str, object]]:
    """Both engines on one workload, in turn."""
    pauses: dict[str, list[float]] = {"torpor": [], "criu": []}
    restores: dict[str, list[float]] = {"torpor": [], "criu": []}
    for number in range(rounds):
        for engine, dump in (("torpor", dump_torpor), ("criu", dump_criu)):
            pauses[engine].append(
                with_workload(program, name, lambda pid, d=dump: d(pid, fresh(scratch), False))
            )
            restores[engine].append(restore_time(engine, program, name, scratch))
        if not number:
            pauses = {"torpor": [], "criu": []}
            restores = {"torpor": [], "criu": []}
    rows = []
    for measure, found in (("pause", pauses), ("restore", restores)):
        ours, theirs = (statistics.median(found[e]) * 1e3 for e in ("torpor", "criu"))
        print(f"{name:14} {measure:8} {ours:10.1f} {theirs:10.1f} {ours / theirs:7.2f}", flush=True)
        rows.append({"case": name, "measure": measure, "torpor_ms": ours, "criu_ms": theirs})
    return rows


def fresh(scratch: Path) -> Path:
    """An empty place for images."""
    place = scratch / "images"
    shutil.rmtree(place, ignore_errors=True)
    return place


def with_workload(program: Path, name: str, act: Callable[[int], float]) -> float:
    """Start a workload, act on it, end it and everything below."""
    kind, count = CASES[name]
    words = program.with_name("words")
    with words.open("w") as out:
        process = subprocess.Popen(
            [program, kind, str(count)],
            stdout=out,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    while "ready" not in words.read_text():
        time.sleep(0.01)
    time.sleep(0.2)
    warm(count << 20 if kind == "memory" else 0)
    try:
        return act(process.pid)
    finally:
        end(process.pid)


def warm(size_bytes: int) -> None:
    """Touch and free as much memory: a virtual machine may have given it back to its host, and
    then the first to touch it waits for the host.
    """
    if size_bytes:
        with mmap.mmap(-1, 2 * size_bytes) as area:
            area.madvise(mmap.MADV_HUGEPAGE)  # free pages go back to the host in such pieces
            for at in range(0, 2 * size_bytes, mmap.PAGESIZE):
                area[at] = 1


def end(pid: int) -> None:
    """Kill a session and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.005)
        except ChildProcessError:
            return


def dump_torpor(pid: int, images: Path, stop: bool) -> float:
    """Pause of our dump, in this process (as the agent does it)."""
    after = After.STOP if stop else After.CONTINUE
    return api.dump([DumpOptions(pid=pid, images_dir=images, after=after)])[0].frozen_s


def dump_criu(pid: int, images: Path, stop: bool) -> float:
    """Frozen time as CRIU's own statistics have it."""
    images.mkdir()
    command = criu_root().criu(
        "dump",
        "-t",
        str(pid),
        "-D",
        str(images),
        "--network-lock",
        "skip",
        "-o",
        "dump.log",
        *([] if stop else ["-R"]),
    )
    subprocess.run(command, check=True)
    with ImageDirectory.open(images, verify=Verify.NOTHING) as opened:
        stats = read_dump_stats(opened)
    assert stats is not None
    return stats.frozen_s


def restore_time(engine: str, program: Path, name: str, scratch: Path) -> float:
    """Dump and stop with an engine, restore with the same; time of the restore."""
    images = fresh(scratch)

    def act(pid: int) -> float:
        (dump_torpor if engine == "torpor" else dump_criu)(pid, images, True)
        end(pid)
        warm(CASES[name][1] << 20 if name.startswith("memory") else 0)
        begin = time.perf_counter()
        if engine == "torpor":
            api.restore(RestoreOptions(images_dir=images))
        else:
            command = criu_root().criu(
                "restore", "-d", "-D", str(images), "--network-lock", "skip", "-o", "restore.log"
            )
            subprocess.run(command, check=True)
        return time.perf_counter() - begin

    return with_workload(program, name, act)


if __name__ == "__main__":
    main()
