# SPDX-License-Identifier: Apache-2.0
"""`criu lazy-pages` and restores that leave memory to it."""

import os
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from tests.functional.harness import PATIENCE_S
from tests.functional.test_incremental import OURS, criu
from tests.functional.test_lazy import await_gone
from torpor.engine.kernel import proc

pytestmark = [pytest.mark.functional, pytest.mark.root]


class Daemon:
    """`criu lazy-pages` for a workload, which listens."""

    def __init__(self, live, *words, name="images", program=OURS):
        ready, tell = os.pipe()
        self.log = live.folder / name / "lazy.log"
        self.process = subprocess.Popen(
            [*program, "lazy-pages", "-D", name, "-o", "lazy.log", "-v4",
             "--status-fd", str(tell), *words],
            cwd=live.folder, stdin=subprocess.DEVNULL, pass_fds=[tell],
        )  # fmt: skip
        os.close(tell)
        assert os.read(ready, 1) == b"\0", self.log.read_text()
        os.close(ready)

    def ended(self):
        """Its status."""
        return self.process.wait(PATIENCE_S)

    def filler(self):
        """The child that fills; it is there when a restore has come."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := proc.children(self.process.pid)):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)
        return found[0]


@pytest.fixture
def dumped(start):
    """A workload with much memory that has been dumped."""

    def begin(program="memory_lazy"):
        live = start(program)
        live.await_ready()
        live.dump()
        return live

    return begin


@pytest.fixture
def daemon():
    begun = []

    def begin(*args, **more):
        begun.append(Daemon(*args, **more))
        return begun[-1]

    yield begin
    for one in begun:
        with suppress(ProcessLookupError):
            one.process.kill()
        one.process.wait()


def test_memory_comes_while_it_is_used(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    criu(live, "restore", "images", "-d", "--lazy-pages")
    live.unharmed()
    assert live.verdict() == "ok"
    assert filling.ended() == 0
    assert "all pages are in place" in filling.log.read_text()


def test_it_ends_when_all_is_there(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    criu(live, "restore", "images", "-d", "--lazy-pages")
    assert filling.ended() == 0
    live.settle_lazily()
    live.dump("second")
    live.restore("second")
    assert live.verdict() == "ok"


def script(live, text):
    """Words that have a script run at each stage."""
    path = live.folder / "script"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return ["--action-script", str(path)]


def stopped_filler(live, filling):
    """Of a restore that has ended, stopped before the tasks ran."""
    children = f"/proc/{filling.process.pid}/task/{filling.process.pid}/children"
    words = script(
        live, f'[ "$CRTOOLS_SCRIPT_ACTION" != pre-resume ] || kill -STOP $(cat {children})'
    )
    criu(live, "restore", "images", "-d", "--lazy-pages", *words)
    return filling.filler()


def test_when_the_one_that_fills_dies_the_workload_is_ended(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    os.kill(stopped_filler(live, filling), signal.SIGKILL)
    assert filling.ended() == 1
    await_gone(live.pid)
    assert "what was restored is ended" in filling.log.read_text()


def test_when_the_one_that_was_started_dies_all_is_filled(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    filler = stopped_filler(live, filling)
    filling.process.kill()
    filling.ended()
    os.kill(filler, signal.SIGCONT)
    await_gone(filler)
    assert live.verdict() == "ok"


def test_a_restore_that_fails_leaves_nothing(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    words = script(live, '[ "$CRTOOLS_SCRIPT_ACTION" != post-restore ]')
    criu(live, "restore", "images", "-d", "--lazy-pages", *words, status=1)
    assert filling.ended() == 1
    await_gone(live.pid)
    assert "did not come to its end" in filling.log.read_text()


def test_pages_that_were_cut_off_end_the_workload(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    stopped = stopped_filler(live, filling)
    for path in (live.folder / "images").glob("pages-*.img"):
        os.truncate(path, 1 << 20)
    os.kill(stopped, signal.SIGCONT)
    assert filling.ended() == 1
    await_gone(live.pid)
