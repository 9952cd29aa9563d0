# SPDX-License-Identifier: Apache-2.0
"""A restore into a control group with little memory: what was there fits, less is an error."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from torpor.engine.errors import KernelError
from torpor.engine.options import Lazy

pytestmark = [pytest.mark.functional, pytest.mark.root]
GROUP = Path("/sys/fs/cgroup/memory") / f"restored-{os.getpid()}"
MIB = 1 << 20
AREA_MIB = 256  # what the workload fills


@pytest.fixture
def live(start):
    """In a group of its own since it has filled its memory."""
    if not (GROUP.parent / "memory.limit_in_bytes").exists():
        pytest.skip("this machine lacks the hierarchy memory of cgroup v1")
    live = start("memory_lazy")
    live.await_ready()
    GROUP.mkdir()
    (GROUP / "cgroup.procs").write_text(str(live.pid))
    yield live
    live.end()
    deadline = time.monotonic() + 5
    while GROUP.exists():
        assert time.monotonic() < deadline, "the group is still in use"
        with suppress(OSError):
            GROUP.rmdir()


def limit(mib):
    (GROUP / "memory.limit_in_bytes").write_text(str(mib * MIB))


@pytest.mark.parametrize("lazy", [Lazy.OFF, Lazy.ON])
def test_no_more_is_taken_than_was_there(live, lazy):
    live.dump()
    limit(AREA_MIB + 32)
    live.restore(lazy=lazy)
    live.settle_lazily()
    peak = int((GROUP / "memory.max_usage_in_bytes").read_text())
    assert AREA_MIB * MIB < peak <= (AREA_MIB + 32) * MIB
    assert int((GROUP / "memory.failcnt").read_text()) == 0
    live.unharmed()


def test_too_little_is_an_error(live):
    live.dump()
    limit(AREA_MIB // 2)
    with pytest.raises(KernelError, match="ran out of memory while it was filled") as caught:
        live.restore()
    assert str(GROUP) in caught.value.cause
    live.reap(live.pids)
    limit(2 * AREA_MIB)
    live.restore()
    (live.folder / "go").touch()
    assert live.await_file("result") == "ok"
