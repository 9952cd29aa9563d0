# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import Refused
from torpor.engine.files import regular
from torpor.engine.files.common import O
from torpor.engine.files.procfs import KIND, Proc
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId


def view(link, **more):
    return RecordedFd(link=link, st_mode=0o100444, fs_magic=0x9FA0, flags=O.LARGEFILE, **more)


def test_proc():
    states = {
        FileId(1): KIND.collect(view("/proc/meminfo", pos=5), dump_context()),
        FileId(2): KIND.collect(view("/proc/42/status", pos=7), dump_context()),
    }
    assert states[1] == Proc(path="/proc/meminfo", flags=O.LARGEFILE, pos=5, mode=0o100444)
    assert [s.task for s in states.values()] == [None, 42]
    assert not regular.KIND.matches(view("/proc/meminfo"))
    back, images = through_images(KIND, states)
    assert back == states
    assert regular.KIND.decode(images) == {}
    text = described(KIND, back, plan_context(1, 2))
    assert [line.split("  #")[0] for line in text.splitlines()] == [
        "openat(-100, '/proc/meminfo', 0x8100, 0) → new513", "dup3($new513, 513, 0)",
        "close($new513)", "lseek(513, 5, 0)",
        "eventfd2(0, 0) → later514", "dup3($later514, 514, 0)", "close($later514)",
        "41: openat(-100, '/proc/42/status', 0x8100, 0) → late2", "41: lseek($late2, 7, 0)",
        "41: fcntl(4, 1) → flags2", "41: dup3($late2, 4, 0)", "41: fcntl(4, 2, $flags2)",
        "41: close($late2)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "link", ["/proc/99/status", "/proc/42/status (deleted)", "/host/proc/meminfo"]
)
def test_limits(link):
    with pytest.raises(Refused):
        KIND.collect(view(link), dump_context())


def test_a_task_that_has_ended_lends_its_number():
    states = {
        FileId(1): KIND.collect(view("/proc/99/status (deleted)", pos=3), dump_context()),
        FileId(2): KIND.collect(view("/proc/98/fd", paths={}), dump_context()),
    }
    assert states[1] == Proc(
        path="/proc/99/status", flags=O.LARGEFILE, pos=3, mode=0o100444, dead=True
    )
    back, images = through_images(KIND, states)
    assert back == states
    remaps = [(r.orig_id, r.remap_id) for r, _ in images.entries("remap-fpath")]
    assert remaps == [(1, 99), (2, 98)]
    context = plan_context(1, 2)
    assert "openat(-100, '/proc/99/status'" in described(KIND, back, context)
    assert context.helpers == {98, 99}


def test_files_of_the_root_stay_shared_and_those_of_threads_come_last():
    states = {
        FileId(1): KIND.collect(view("/proc/41/status"), dump_context()),
        FileId(2): KIND.collect(
            view("/proc/41/task/50/stat"), dump_context(owners={1041: 41, 1050: 50})
        ),
    }
    context = plan_context(1, 2, root=41)
    made = [op.call for op in KIND.plan(states, context)]
    assert made == ["openat", "dup3", "close", "eventfd2", "dup3", "close"]
    assert {late.last for late in KIND.late(states, context)} == {True}
