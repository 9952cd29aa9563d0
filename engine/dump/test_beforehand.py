# SPDX-License-Identifier: Apache-2.0
"""Areas of large tasks that are known before the stop, and what makes them known no more."""

import mmap
import os
import re
import subprocess
import time
from dataclasses import replace

import pytest

from torpor.engine.dump import beforehand
from torpor.engine.dump.beforehand import LARGE_BYTES
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Vanished
from torpor.engine.kernel import proc

HEAD = "1000-3000 rw-p 00000000 00:00 0 \nRss:  8 kB\nVmFlags: rd wr mr mw me ac{} \n"


@pytest.fixture
def large():
    room = mmap.mmap(-1, LARGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room[:: mmap.PAGESIZE] = b"x" * (LARGE_BYTES // mmap.PAGESIZE)
    return room


@pytest.fixture
def looked(large):
    me = os.getpid()
    spaces = beforehand.look([StoppedTask(pid=me, process=me, ppid=1, tids=[me], state="R")])
    return spaces[me]


def texts():
    return proc.read_text("self", "maps"), proc.read_text("self", "status")


def test_a_large_task_is_known_until_its_areas_change(looked):
    maps, status = texts()
    known = replace(looked, maps=maps, locked=re.search(r"VmLck:.*", status)[0])
    assert known.knows(maps, status)
    assert not known.knows(maps + "1000-2000 rw-p 00000000 00:00 0 \n", status)
    assert not known.knows(maps, re.sub(r"VmLck:.*", "VmLck: 123456 kB", status))


def test_nothing_is_known_of_a_small_one(looked):
    assert not replace(looked, maps="").knows(*texts())


def test_the_search_for_code_changes_nothing_afterwards():
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            while proc.read_text(child.pid, "syscall").startswith("running"):
                time.sleep(0.01)
            time.sleep(0.05)
            task = StoppedTask(
                pid=child.pid, process=child.pid, ppid=1, tids=[child.pid], state="S"
            )
            looked = beforehand.look([task])[child.pid]
            assert proc.read_text(child.pid, "smaps") == looked.parsed.text
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("", "", False),
        ("", " hg", False),
        (" uw", "", False),
        ("", " gu", True),
        ("", " sl", True),
        (" lo", " lo lf", True),
        (" dc", "", True),
    ],
)
def test_marks_that_maps_does_not_tell(looked, before, after, changes):
    one = replace(looked, maps="x", smaps=HEAD.format(before))
    assert one.changed(HEAD.format(after)) == (["1000-3000"] if changes else [])


def test_an_area_that_is_gone_by_now_is_none_that_changed(looked):
    one = replace(looked, maps="x", smaps=HEAD.format(""))
    assert one.changed(HEAD.format(" gu").replace("1000-", "2000-")) == []


def test_a_change_is_told_of(large):
    me = os.getpid()
    room = mmap.mmap(-1, 16 * mmap.PAGESIZE)  # shared: joins no other area
    room.madvise(mmap.MADV_DONTFORK)
    spaces = beforehand.look([StoppedTask(pid=me, process=me, ppid=1, tids=[me], state="R")])
    if not spaces[me].maps:
        pytest.fail("its areas changed while it was looked at")
    used = {me: spaces[me].smaps}
    room.madvise(mmap.MADV_DOFORK)
    with pytest.raises(Vanished, match="changed its memory"):
        beforehand.verify(spaces, used)
    beforehand.verify(spaces, {me: "another"})
