# SPDX-License-Identifier: Apache-2.0
"""Commands of a lazy restore that run beside one another, and a restore in pids of its own."""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.functional.harness import PATIENCE_S
from tests.functional.test_incremental import OURS
from torpor.engine.kernel import proc

IN_NEW_PIDS = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
STAY = """{restore}
status=$?
touch restored
while [ $status = 0 ] && [ ! -e over ]; do sleep 0.02; done
exit $status"""
HOLD = """#!/bin/sh
cd "{folder}"
[ "$CRTOOLS_SCRIPT_ACTION" = pre-resume ] || exit 0
touch held
while [ ! -e on ]; do sleep 0.01; done"""


class Beside:
    """A command that tells by --status-fd when it can be connected to."""

    def __init__(self, live, command, *words, name="images", program=OURS, pass_fds=()):
        ready, tell = os.pipe()
        (live.folder / name).mkdir(exist_ok=True)
        self.path = live.folder / name / f"{command}.log"
        self.process = subprocess.Popen(
            [*program, command, "-D", name, "-o", self.path.name, "-v4",
             "--status-fd", str(tell), *words],
            cwd=live.folder, stdin=subprocess.DEVNULL, pass_fds=[tell, *pass_fds],
        )  # fmt: skip
        os.close(tell)
        with os.fdopen(ready, "rb") as waiting:
            assert waiting.read(1) == b"\0", self.log()

    def log(self):
        return self.path.read_text() if self.path.exists() else ""

    def ended(self):
        """Its status."""
        return self.process.wait(PATIENCE_S)

    def filler(self):
        """The child that fills; it is there when a restore has come."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := proc.children(self.process.pid)):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.005)
        return found[0]

    def end(self):
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Elsewhere:
    """A restore in a pid namespace of its own, where the old pids are free."""

    def __init__(self, live, *words, held=False, program=OURS):
        self.folder = live.folder
        script = live.folder / "hold"
        script.write_text(HOLD.format(folder=live.folder))
        script.chmod(0o755)
        more = ["--action-script", str(script)] if held else []
        line = [
            *program,
            "restore",
            "-d",
            "-D",
            "images",
            "-o",
            "restore.log",
            "-v4",
            *words,
            *more,
        ]
        self.process = subprocess.Popen(
            [*IN_NEW_PIDS, "sh", "-c", STAY.format(restore=" ".join(line))],
            cwd=live.folder, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def log(self):
        return (self.folder / "images" / "restore.log").read_text()

    def until(self, name):
        """Until a file is there."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def go_on(self):
        (self.folder / "on").touch()
        self.until("restored")

    def verdict(self):
        """What the restored workload says of itself."""
        (self.folder / "go").touch()
        self.until("result")
        return (self.folder / "result").read_text()

    def root(self, live):
        """The pid of the restored root, seen from here; None when it has ended."""
        for path in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError, IndexError):
                text = path.read_text()
                ids = text.split("NSpid:")[1].splitlines()[0].split()
                if len(ids) > 1 and ids[-1] == str(live.pid) and "\nState:\tZ" not in text:
                    return int(ids[0])
        return None

    def end(self):
        (self.folder / "over").touch()
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
