# SPDX-License-Identifier: Apache-2.0
"""Starts a workload, dumps it, restores it, and sees to it that nothing is left."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from torpor.engine import api
from torpor.engine.options import After, DumpOptions, RestoreOptions

WORKLOADS = Path(__file__).parent / "workloads"
PR_SET_CHILD_SUBREAPER = 36


class Round:
    """One workload and what has become of it."""

    def __init__(self, folder: Path, *command: str, python: bool = True, stdin=None) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.folder, self.warnings = folder, ()
        folder.chmod(0o777)
        words = [sys._base_executable, *command] if python else list(command)
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                close_fds=True,
            )
        self.pid, self.alive = self.process.pid, True

    def wait_for(self, name: str, timeout_s: float = 20) -> Path:
        """A file of the folder, once it is there."""
        path, deadline = self.folder / name, time.monotonic() + timeout_s
        while not path.exists() or not path.stat().st_size:
            ended = os.waitpid(self.pid, os.WNOHANG)[0] if self.alive else 0
            if ended:
                self.alive = False
            done = path.exists() and path.stat().st_size
            assert done or not ended, f"it has ended: {self.log()}"
            assert time.monotonic() < deadline, f"there is no {name}: {self.log()}"
            time.sleep(0.005)
        return path

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def dump(self, name: str = "images", after: After = After.STOP) -> Path:
        """Dump and, unless told otherwise, end it."""
        options = DumpOptions(pid=self.pid, images_dir=self.folder / name, after=after)
        (report,) = api.dump([options])
        self.warnings = report.warnings
        if after is After.STOP:
            self.reap()
        return options.images_dir

    def restore(self, images: Path) -> None:
        report = api.restore(RestoreOptions(images_dir=images))
        assert report.pid == self.pid
        self.warnings, self.alive = report.warnings, True

    def wait(self, timeout_s: float = 20) -> int:
        """Exit status, negative for a signal."""
        deadline = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.alive = False
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, f"it does not end: {self.log()}"
            time.sleep(0.005)

    def reap(self) -> None:
        """Take the exit status of everything that was its, now ours."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # the engine, in this very process, was its tracer
                self.alive = False
                break
            if pid == self.pid:
                self.alive = False
            if not pid:
                if not self.alive:
                    break
                time.sleep(0.002)
        assert not self.alive, "it does not end"

    def end(self) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                self.reap()
        self.process.returncode = 0
