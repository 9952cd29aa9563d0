# SPDX-License-Identifier: Apache-2.0
"""`criu lazy-pages` and restores that leave memory to it."""

import os
import signal

import pytest

from tests.functional.lazyrun import Beside
from tests.functional.test_incremental import criu
from tests.functional.test_lazy import await_gone

pytestmark = [pytest.mark.functional, pytest.mark.root]


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

    def begin(live, *words):
        begun.append(Beside(live, "lazy-pages", *words))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def test_memory_comes_while_it_is_used(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    criu(live, "restore", "images", "-d", "--lazy-pages")
    live.unharmed()
    assert live.verdict() == "ok"
    assert filling.ended() == 0
    assert "all pages are in place" in filling.log()


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
    assert "what was restored is ended" in filling.log()


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
    assert "did not come to its end" in filling.log()


def test_pages_that_were_cut_off_end_the_workload(dumped, daemon):
    live = dumped()
    filling = daemon(live)
    stopped = stopped_filler(live, filling)
    for path in (live.folder / "images").glob("pages-*.img"):
        os.truncate(path, 1 << 20)
    os.kill(stopped, signal.SIGCONT)
    assert filling.ended() == 1
    await_gone(live.pid)
