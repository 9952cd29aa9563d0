# SPDX-License-Identifier: Apache-2.0
from torpor.engine.files import regular
from torpor.engine.files.common import O
from torpor.engine.files.device import KIND, Device, usual_name
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId

NULL = RecordedFd(link="/dev/null", st_mode=0o20666, st_rdev=0x103, flags=O.RDWR)


def test_collect():
    assert KIND.matches(NULL)
    assert KIND.collect(NULL, dump_context()) == Device(path="/dev/null", flags=2, mode=0o20666)
    other = RecordedFd(link="/host/null", st_mode=0o20666, st_rdev=0x103, paths={})
    assert KIND.collect(other, dump_context()).path == "/dev/null"


def test_only_stateless_devices():
    for number in (0x101, 0x500, 0x8800, 0xA00C8):
        assert not KIND.matches(RecordedFd(st_mode=0o20666, st_rdev=number))
    path = RecordedFd(st_mode=0o20666, st_rdev=0x103, flags=O.PATH)
    assert not KIND.matches(path)
    assert regular.KIND.matches(path)
    assert not regular.KIND.matches(NULL)
    assert usual_name(0x109) == "/dev/urandom"


def test_the_log_of_the_kernel():
    warnings = []
    for flags, wanted in ((O.WRONLY, 0), (O.RDWR | O.NONBLOCK, 1)):
        view = RecordedFd(link="/dev/kmsg", st_mode=0o20600, st_rdev=0x10B, flags=flags)
        assert KIND.matches(view)
        states = {FileId(1): KIND.collect(view, dump_context(warn=warnings.append))}
        back, _ = through_images(KIND, states)
        assert described(KIND, back, plan_context(1)).count("lseek(513, 0, 2)") == wanted
        assert len(warnings) == wanted


def test_images_and_plan():
    states = {FileId(1): KIND.collect(NULL, dump_context())}
    back, images = through_images(KIND, states)
    assert back == states
    assert regular.KIND.decode(images) == {}
    assert described(KIND, back, plan_context(1)).splitlines()[0] == (
        "openat(-100, '/dev/null', 258, 0) → open513  # fd 3 -> /dev/null"
    )
