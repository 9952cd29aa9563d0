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
