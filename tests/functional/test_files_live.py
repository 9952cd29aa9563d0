# SPDX-License-Identifier: Apache-2.0
"""Workloads of files through the whole engine: dump, end, restore; the workload checks itself."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from torpor.engine import api
from torpor.engine.errors import Refused
from torpor.engine.options import DumpOptions, RestoreOptions

WORKLOADS = Path(__file__).parent / "workloads"
PATIENCE_S = 15


def wait_for(path, what):
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return path.read_text()


def end(process):
    """End it and wait for the children that it leaves to us: they hold its number as a session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
            stat = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
            if int(stat[2]) == process.pid:
                os.waitpid(int(child), os.WNOHANG)
        time.sleep(0.01)


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(prefix="torpor-live-") as name:
        yield Path(name)


def start(name, place):
    return subprocess.Popen(
        ["/usr/bin/python3", WORKLOADS / f"{name}.py", place],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(place / "errors").open("w"),
        start_new_session=True, cwd="/",
    )  # fmt: skip


@pytest.mark.root
@pytest.mark.functional
@pytest.mark.parametrize("name", ["files_regular", "files_pipes", "files_anonymous"])
def test_workload(name, place):
    if os.geteuid() != 0:
        pytest.skip("needs root: pids are chosen at restore")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    process = start(name, place)
    try:
        wait_for(place / "ready", f"{name} did not set up: {(place / 'errors').read_text()}")
        images = place / "images"
        api.dump([DumpOptions(pid=process.pid, images_dir=images)])
    finally:
        end(process)
    report = api.restore(RestoreOptions(images_dir=images))
    (place / "go").touch()
    text = wait_for(place / "result", f"{name} gave no result")
    assert text == "ok", text
    assert report.pid == process.pid


@pytest.mark.root
@pytest.mark.functional
def test_refusals_leave_the_task_running(place):
    code = (
        "import ctypes, pathlib, sys, time\n"
        "one = ctypes.CDLL(None).syscall(323, 1)\n"  # userfaultfd(UFFD_USER_MODE_ONLY)
        "other = ctypes.CDLL(None).syscall(323, 1)\n"
        "assert min(one, other) > 2\n"
        f"pathlib.Path({str(place)!r}, 'ready').touch()\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(place / "ready", "did not set up")
        with pytest.raises(Refused) as error:
            api.dump([DumpOptions(pid=process.pid, images_dir=place / "images")])
        assert "(and 1 more)" in str(error.value)
        assert process.poll() is None
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "S"
    finally:
        process.kill()
        process.wait()
