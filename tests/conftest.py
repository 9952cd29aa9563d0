# SPDX-License-Identifier: Apache-2.0
"""What all tests share: orphans come to us, and nothing may be left behind."""

import contextlib
import ctypes
import os
import re
import signal
import time
from pathlib import Path

import pytest

PR_SET_CHILD_SUBREAPER = 36
PLACES_OF_ALL = ("/tmp/", "/dev/shm/", "/run/", "/var/")
OF_OTHERS_S = 2.0
"""Rings run beside each other: what another one has for a moment is gone then."""
GUARDED = ("functional", "faults", "compat", "root")


def pytest_configure(config):
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(wait_s=0.0):
    """Wait for children that have ended; True when none is left."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if not pid:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)


def descendants():
    """Pids below this process."""
    found, todo = [], [os.getpid()]
    while todo:
        for tid in (Path("/proc") / str(todo.pop()) / "task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids = [int(word) for word in tid.read_text().split()]
                found += pids
                todo += pids
    return found


def state(own):
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {
        "mounts": len([point for point in points if _is_looked_at(point, own)]),
        "cgroups": {str(p) for p in Path("/sys/fs/cgroup").glob("*/torpor*") if _may_be_ours(p)},
    }


def _is_looked_at(point, own):
    """Mounts of others come and go in the places for such things, beside our own directory."""
    return point.startswith((own, "/run/torpor")) or not point.startswith(PLACES_OF_ALL)


def _may_be_ours(cgroup):
    """Those of tests are named by the process that runs them, and others may run some as well.

    Nodes of a cluster (torpor-CLUSTER-NODE) are none of ours.
    """
    if re.fullmatch(r"torpor-[0-9a-f]{6}-\w+", cgroup.name):
        return False
    _, of_a_test, pid = cgroup.name.rpartition("torpor-test-")
    return not of_a_test or pid == str(os.getpid())


@pytest.fixture(autouse=True)
def nothing_left(request, tmp_path_factory):
    """After a test with live tasks: no process, mount or cgroup of it is there."""
    if not any(request.node.get_closest_marker(name) for name in GUARDED) or (
        request.node.get_closest_marker("e2e")
    ):
        yield
        return
    own = str(tmp_path_factory.getbasetemp())
    before, running = state(own), set(descendants())
    yield
    left = set()
    for _ in range(50):
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        left = {pid for pid in set(descendants()) - running if not _is_zombie(pid)}
        if not left:
            break
        time.sleep(0.05)
    named = {pid: _name(pid) for pid in left}
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not named, f"processes left: {named}"
    deadline = time.monotonic() + OF_OTHERS_S
    while not _is_as_before(before, after := state(own)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert after["mounts"] <= before["mounts"], "a mount was left"
    assert after["cgroups"] <= before["cgroups"], "a cgroup was left"


def _is_as_before(before, after):
    return after["mounts"] <= before["mounts"] and after["cgroups"] <= before["cgroups"]


def _is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _name(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return "?"
