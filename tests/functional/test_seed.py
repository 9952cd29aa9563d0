# SPDX-License-Identifier: Apache-2.0
"""The first process of a restored tree, and what may come between its birth and our hands."""

import os
import signal
import subprocess
import time

import pytest

from torpor.engine import api, native
from torpor.engine.options import After, DumpOptions, RestoreOptions
from torpor.engine.restore import owntime

pytestmark = [pytest.mark.functional, pytest.mark.root]

TIMES = 250


def test_one_that_is_seized_in_its_execve(tmp_path, monkeypatch):
    """Some are, and stop there by themselves before they are asked to."""
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    task = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True, cwd="/", **quiet)
    try:
        options = DumpOptions(pid=task.pid, images_dir=tmp_path / "images", after=After.STOP)
        api.dump([options])
    finally:
        task.kill()
        task.wait()
    seize = native.seize

    def slowly(tid, options=0):
        seize(tid, options)
        time.sleep(0.002)

    monkeypatch.setattr(native, "seize", slowly)
    monkeypatch.setattr(owntime, "missing", lambda *_: None)  # which would give it time
    for _ in range(TIMES):
        report = api.restore(RestoreOptions(images_dir=tmp_path / "images"))
        os.kill(report.pid, signal.SIGKILL)
        os.waitpid(report.pid, 0)
