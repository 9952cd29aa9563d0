# SPDX-License-Identifier: Apache-2.0
"""Tasks whose main thread has ended before others, beside what the catalogue tries with them."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.functional.describe import stopped
from torpor.engine import api
from torpor.engine.errors import KernelError, Refused
from torpor.engine.inspect.plan import plan_lines, restore_plan
from torpor.engine.options import After, DumpOptions, Lazy, MemoryWay

pytestmark = [pytest.mark.functional, pytest.mark.root]
MODES = ("root", "child", "user")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", [MemoryWay.SNAPSHOT, MemoryWay.PRECOPY])
def test_each_way_to_take_memory(start, mode, way):
    live = start("tasks_main_ended", mode)
    live.await_ready()
    before = live.look()
    for images in ("first", "second"):
        live.dump(images, After.CONTINUE, memory=way)
        assert live.report.memory_way is way, live.report.memory_reason
        assert ";" not in live.report.memory_reason
        live.same_as(before)
    live.end()
    live.restore("second")
    live.same_as(before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_filled_lazily(start, mode):
    live = start("tasks_main_ended", mode)
    live.await_ready()
    before = live.look()
    live.dump()
    live.restore(lazy=Lazy.ON)
    live.settle_lazily()
    live.same_as(before)
    assert live.verdict() == "ok"


def test_left_paused_and_told_of(start):
    live = start("tasks_main_ended", "root")
    live.await_ready()
    options = DumpOptions(pid=live.pid, images_dir=live.folder / "images", after=After.PAUSE)
    assert "nothing would be refused" in api.plan_dump(options)
    (live.folder / "images").mkdir()
    api.dump([options])
    assert set(stopped(live.pid).values()) == {"T"}
    os.kill(live.pid, signal.SIGCONT)
    live.unharmed()
    planned = [text for text, _ in plan_lines(restore_plan(live.folder / "images"))]
    assert any("let its main thread end with wait status 0x700" in text for text in planned)
    assert live.verdict() == "ok"


def test_a_pre_dump_and_what_has_changed_since(start):
    live = start("tasks_main_ended", "root")
    live.await_ready()
    before = live.look()
    (live.folder / "first").mkdir()
    api.pre_dump(DumpOptions(pid=live.pid, images_dir=live.folder / "first"))
    live.unharmed()
    live.dump("second", parent="../first")
    assert live.report.skipped_bytes > 0
    live.restore("second")
    live.same_as(before)
    assert live.verdict() == "ok"


def test_a_kernel_without_pidfds_of_threads_is_told_of(start, monkeypatch):
    def refused(_):
        raise KernelError("pidfd_open failed", errno=errno.EINVAL, subject="task")

    live = start("tasks_main_ended", "root")
    live.await_ready()
    monkeypatch.setattr("torpor.engine.native.pidfd_open", refused)
    with pytest.raises(Refused, match=r"before Linux 6\.9"):
        live.dump()
    assert live.verdict() == "ok"


def test_who_may_signal_it_is_as_before(start):
    """The kernel asks the credentials of the main thread."""
    live = start("tasks_main_ended", "user")
    live.await_ready()
    live.dump()
    live.restore()
    (child,) = (pid for pid in live.pids if pid != live.pid and _is_process(pid))
    status = Path(f"/proc/{child}/status").read_text()
    assert "State:\tZ" in status
    assert "Uid:\t33\t33\t33\t33" in status
    assert "Groups:\t5 6" in status
    assert live.verdict() == "ok"


def _is_process(pid):
    path = Path(f"/proc/{pid}/status")
    return path.exists() and f"Tgid:\t{pid}\n" in path.read_text()
