# SPDX-License-Identifier: Apache-2.0
"""What the agent sees of a process whose main thread has ended."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from torpor.plugin.agent.procview import NodeView

PROGRAM = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).syscall(60, 0)
"""


@pytest.fixture
def dead_main_thread():
    with subprocess.Popen([sys.executable, "-c", PROGRAM]) as process:
        try:
            deadline = time.monotonic() + 10
            while "State:\tZ" not in Path(f"/proc/{process.pid}/status").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()


def test_another_thread_shows_what_it_has(dead_main_thread):
    view = NodeView()
    assert view.exists(dead_main_thread)
    assert view.mounts(dead_main_thread)
    assert view.root_of(dead_main_thread).resolve() == Path("/")


def test_a_zombie_is_not_there():
    with subprocess.Popen(["/bin/true"]) as process:
        deadline = time.monotonic() + 10
        while "State:\tZ" not in Path(f"/proc/{process.pid}/status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not NodeView().exists(process.pid)
