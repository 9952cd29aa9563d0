# SPDX-License-Identifier: Apache-2.0
"""Each way to take memory: bytes of one instant, no mark left, and what stands against it."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from torpor.engine import api
from torpor.engine.errors import KernelError
from torpor.engine.options import After, DumpOptions, MemoryWay

pytestmark = [pytest.mark.functional, pytest.mark.root]
WAYS = (MemoryWay.FROZEN, MemoryWay.SNAPSHOT, MemoryWay.PRECOPY)
SEEDS = range(4)
MEMORY, PIDS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/pids")


def dump(live, name, way, **more):
    return live.dump(name, After.CONTINUE, memory=way, **more)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", WAYS)
def test_writers_see_one_instant(start, way, seed):
    live = start("memory_writers", str(seed))
    live.await_file("ready")
    live.mark()
    for images in ("first", "second"):
        dump(live, images, way)
        assert live.report.memory_way is way, live.report.memory_reason
    live.end()
    for images in ("second", "first"):
        live.restore(images)
        if images == "second":
            live.end()
    assert live.verdict() == "ok"


def test_what_is_left_out_comes_from_a_parent(start):
    live = start("memory_writers", "7")
    live.await_file("ready")
    live.mark()
    dump(live, "first", MemoryWay.SNAPSHOT)
    dump(live, "second", MemoryWay.SNAPSHOT, parent="../first")
    assert live.report.skipped_bytes > 0
    live.end()
    live.restore("second")
    assert live.verdict() == "ok"


def test_a_snapshot_leaves_no_trace(start):
    live = start("memory_parent")
    live.await_ready()
    for number in range(3):
        dump(live, f"images-{number}", MemoryWay.AUTO)
        assert live.report.memory_way is MemoryWay.SNAPSHOT, live.report.memory_reason
        assert not Path(f"/proc/{live.pid}/task/{live.pid}/children").read_text()
    assert live.verdict() == "ok"


@pytest.mark.parametrize("program", ["core_seccomp", "core_threads", "core_tree", "core_memory"])
def test_states_of_all_sorts_are_forked(start, program):
    live = start(program)
    live.await_ready()
    before = live.look()
    dump(live, "images", MemoryWay.SNAPSHOT)
    live.same_as(before)
    live.end()
    live.restore("images")
    live.same_as(before)
    assert live.verdict() == "ok"


@contextmanager
def group(mount, live, **settings):
    """A cgroup of version 1 with the workload in it."""
    if not (mount / "tasks").exists():
        pytest.skip(f"this machine lacks a cgroup hierarchy for {mount.name}")
    place = mount / f"torpor-test-{os.getpid()}"
    place.mkdir()
    try:
        for name, value in settings.items():
            (place / name.replace("__", ".")).write_text(str(value))
        (place / "cgroup.procs").write_text(str(live.pid))
        yield place
    finally:
        live.end()
        place.rmdir()


def test_no_room_for_another_task(start):
    live = start("memory_parent")
    live.await_ready()
    with group(PIDS, live, pids__max=1):
        dump(live, "images", MemoryWay.AUTO)
        assert live.report.memory_way is MemoryWay.FROZEN
        assert "the pids limit of the cgroup" in live.report.memory_reason
        assert live.verdict() == "ok"


def test_no_room_for_as_much_memory(start):
    live = start("memory_parent")
    live.await_ready()
    with group(MEMORY, live) as place:
        (place / "memory.limit_in_bytes").write_text(str(20 << 20))
        dump(live, "images", MemoryWay.AUTO)
        assert live.report.memory_way is MemoryWay.FROZEN
        assert "there is room for" in live.report.memory_reason
        assert live.verdict() == "ok"


def test_the_snapshot_dies_of_memory_and_the_workload_lives(start):
    live = start("memory_grower")
    live.await_file("up")

    def write_all(progress):
        if progress.phase == "write":
            (live.folder / "write").touch()
            deadline = time.monotonic() + 20
            while not (live.folder / "written").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)

    with group(MEMORY, live) as place:
        (place / "memory.limit_in_bytes").write_text(str(64 + 24 << 20))
        (live.folder / "fill").touch()
        live.await_ready()
        options = DumpOptions(
            pid=live.pid,
            images_dir=live.folder / "images",
            after=After.CONTINUE,
            memory=MemoryWay.SNAPSHOT,
        )
        with pytest.raises(KernelError, match="snapshot was killed") as caught:
            api.dump([options], progress=write_all)
        assert str(place) in caught.value.cause
        assert "memory" in caught.value.remedy
        live.unharmed()
        assert not Path(f"/proc/{live.pid}/task/{live.pid}/children").read_text()
        assert live.verdict() == "ok"


def test_a_plan_tells_the_way(start):
    live = start("memory_parent")
    live.await_ready()
    options = DumpOptions(pid=live.pid, images_dir=live.folder, after=After.CONTINUE)
    assert "taken by the way snapshot: the tasks run on" in api.plan_dump(options)
    options = DumpOptions(pid=live.pid, images_dir=live.folder)
    assert "taken by the way frozen: the tasks stand still" in api.plan_dump(options)
