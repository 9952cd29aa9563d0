# SPDX-License-Identifier: Apache-2.0
"""What an operation that failed could leave on a machine, and in the process that ran it."""

import gc
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.conftest import descendants, reap
from tests.functional.conftest import program
from tests.functional.harness import Live

WORKLOADS = (
    "core_memory", "core_threads", "core_signals", "core_tree", "core_seccomp", "core_sysv",
    "memory_shared siblings", "memory_shared memfd_seals", "tasks_tree orphans",
    "tasks_tree fs_of_sibling", "tasks_main_ended children",
    "files_gone linked_near", "files_gone socket_and_device",
    "files_locks mixed", "files_owners kinds", "core_blocked epoll_wait",
)  # fmt: skip
"""Of the catalogue: memory, threads, signals, trees, files, locks, blocked calls."""
EVERY = os.environ.get("TORPOR_FAULTS") == "all"
"""Fail each operation once, not some: `make faults-all`."""
SEGMENTS = Path("/proc/sysvipc/shm")


def begin(folder: Path, case) -> Live:
    """A workload of the catalogue that is ready."""
    folder.chmod(0o777)
    live = Live(folder, [*program(case.program), str(folder), *case.arguments])
    try:
        live.await_ready()
    except BaseException:
        live.end()
        raise
    return live


def found(live: Live) -> dict[str, object]:
    """Everything that must be the same before and after."""
    gc.collect()
    folder = live.folder
    return {
        "descriptors": sorted(_links()),
        "threads": threading.active_count(),
        "mounts": Path("/proc/self/mountinfo").read_text(errors="replace"),
        "files": sorted(str(path) for path in folder.rglob("*") if "images" not in str(path)),
        "sockets": Path("/proc/net/unix").read_text(errors="replace").count(str(folder)),
        "segments": _segments(live.pids),
        "below us": sorted(_running()),
    }


def same(live: Live, before: dict[str, object], told: str) -> None:
    """Nothing is left; what ends by itself gets a moment for it.

    Orphans come to us, as they would to the init of a machine.
    """
    deadline = time.monotonic() + 5
    reap()
    while (now := found(live)) != before:
        differ = {key: (before[key], now[key]) for key in before if before[key] != now[key]}
        assert time.monotonic() < deadline, f"{told}\nleft: {differ}"
        time.sleep(0.01)
        reap()


def _links() -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{name}")
            if not link.startswith(f"/proc/{os.getpid()}/fd"):
                links.append(link)
    return links


def _segments(makers: set[int]) -> list[str]:
    """Ids of System V segments that one of these has made."""
    lines = [line.split() for line in SEGMENTS.read_text().splitlines()[1:]]
    return [words[1] for words in lines if int(words[4]) in makers]


def _running() -> list[int]:
    alive = []
    for pid in descendants():
        with suppress(OSError):
            state = (
                Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            )
            if state != "Z":
                alive.append(pid)
    return alive
