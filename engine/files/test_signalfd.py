# SPDX-License-Identifier: Apache-2.0
from torpor.engine.files.common import O
from torpor.engine.files.signalfd import KIND, Signalfd
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId


def test_signalfd():
    view = RecordedFd(
        link="anon_inode:[signalfd]",
        flags=O.RDWR | O.NONBLOCK,
        info=("sigmask:\t8000000000000200",),
    )
    assert KIND.matches(view)
    state = KIND.collect(view, dump_context())
    assert state == Signalfd(mask=1 << 63 | 1 << 9, flags=O.RDWR | O.NONBLOCK)
    back, _ = through_images(KIND, {FileId(1): state})
    assert back == {FileId(1): state}
    assert described(KIND, back, plan_context(1)).splitlines()[0] == (
        "signalfd4(-1, mask 0x8000000000000200, 8, 2048) → signalfd513"
        "  # fd 3 -> anon_inode:[signalfd]"
    )
