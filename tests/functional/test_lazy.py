# SPDX-License-Identifier: Apache-2.0
"""Memory that is filled while its tasks run: used in every way, and what goes wrong meanwhile."""

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.functional.harness import PATIENCE_S
from torpor.engine import api
from torpor.engine.errors import Refused, Vanished
from torpor.engine.haste import LATENCY
from torpor.engine.lazy.daemon import GUARD
from torpor.engine.lazy.handing import NAME
from torpor.engine.options import After, DumpOptions, Lazy

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.fixture
def restored(start):
    """A workload whose memory is about to be filled, and the guard and the filler of it."""

    def begin():
        live = start("memory_lazy")
        live.await_ready()
        live.dump()
        others = set(helpers())
        live.restore(lazy=Lazy.ON)
        deadline = time.monotonic() + PATIENCE_S
        while len(found := dict(set(helpers()) - others)) < 2:
            assert time.monotonic() < deadline
        return live, (found[GUARD], found[NAME])

    return begin


def helpers():
    """Name and pid of those that fill, and of their guards."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            head, _, rest = path.read_text().rpartition(")")
            pid, _, name = head.partition(" (")
            if name in (NAME, GUARD) and rest.split()[0] != "Z":
                yield name, int(pid)


def gone(pid):
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def await_gone(pid):
    deadline = time.monotonic() + PATIENCE_S
    while not gone(pid):
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.01)


def test_used_in_every_way(start):
    live = start("memory_lazy")
    live.await_ready()
    images = live.dump()
    live.restore(lazy=Lazy.ON)
    assert live.verdict() == "ok"
    deadline = time.monotonic() + PATIENCE_S
    while not (recorded := images / f"torpor-faults-{live.pid}").exists():
        assert time.monotonic() < deadline, "the order of its faults was not kept"
        time.sleep(0.01)
    assert recorded.stat().st_size
    live.reap(live.pids)
    (live.folder / "result").unlink()
    live.restore(lazy=Lazy.ON)
    assert live.verdict() == "ok"


def test_a_second_dump_is_refused_until_all_is_there(start, tmp_path):
    live = start("memory_lazy")
    live.await_ready()
    live.dump()
    live.restore(lazy=Lazy.ON)
    stopped = [pid for _, pid in helpers()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Refused, match="userfaultfd"):
            api.dump([DumpOptions(pid=live.pid, images_dir=tmp_path / "no", after=After.STOP)])
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    live.settle_lazily()
    live.dump("second")
    live.restore("second")
    assert live.verdict() == "ok"


def test_nobody_keeps_the_processors_awake(restored):
    live, helping = restored()
    for pid in (*helping, live.pid, os.getpid()):
        for link in [*Path(f"/proc/{pid}/fd").iterdir()]:
            with suppress(FileNotFoundError):
                assert os.readlink(link) != LATENCY, link


def test_when_the_filler_dies_the_workload_is_ended(restored):
    live, (guard, filler) = restored()
    os.kill(filler, signal.SIGKILL)
    await_gone(guard)
    await_gone(live.pid)


@pytest.mark.parametrize("number", [2, 3])
def test_without_a_filler_or_a_guard_the_workload_is_ended(start, monkeypatch, number):
    """Its pages would be zeros, or could become so."""
    births = 0

    def fork(bear=os.fork):
        nonlocal births
        births += 1
        if births == number:
            raise OSError(errno.EAGAIN, "no more processes")
        return bear()

    live = start("memory_lazy")
    live.await_ready()
    live.dump()
    monkeypatch.setattr(os, "fork", fork)
    with suppress(Vanished):  # it may be ended before all is restored
        live.restore(lazy=Lazy.ON)
    await_gone(live.pid)


def test_when_the_guard_dies_all_is_filled(restored):
    live, (guard, filler) = restored()
    os.kill(guard, signal.SIGKILL)
    await_gone(filler)
    live.settle_lazily()
    assert live.verdict() == "ok"


def test_a_pages_file_that_is_cut_short_ends_the_workload(start):
    live = start("memory_lazy")
    live.await_ready()
    images = live.dump()
    live.restore(lazy=Lazy.ON)
    for path in images.glob("pages-*.img"):
        os.truncate(path, 1 << 20)
    await_gone(live.pid)
