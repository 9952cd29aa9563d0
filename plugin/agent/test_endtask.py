# SPDX-License-Identifier: Apache-2.0
"""Ending tasks by the end of a tracer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.plugin.agent.endtask import end_task


def test_kills_a_child():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert end_task(process.pid)
        assert process.wait(10) == -signal.SIGKILL


def test_gone():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert not end_task(process.pid)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
def test_kills_the_init_of_a_pid_namespace():
    """Which ignores what it has no handler for, even SIGKILL from inside."""
    command = ["unshare", "-pf", "--kill-child", "sleep", "60"]
    with subprocess.Popen(command) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (words := children.read_text().split()):
            pass
        assert end_task(int(words[0]))
        assert process.wait(10) != 0
