# SPDX-License-Identifier: Apache-2.0
import struct
from dataclasses import replace

from torpor.engine.kernel.recorded import RecordedImages
from torpor.engine.memory import sysv


def test_parse_and_round_trip():
    """struct shmid64_ds of x86-64: ipc64_perm is 48 bytes, then the size."""
    raw = struct.pack("<iIIIIIHHQQ", 0x162E, 10, 20, 11, 21, 0o640, 0, 0, 0, 0)
    raw = raw.ljust(48, b"\0") + struct.pack("<4Q", 8192, 1, 2, 77)
    one = sysv.parse(32769, raw.ljust(sysv.STAT_BYTES, b"\0"))
    assert one == sysv.Segment(
        shm_id=32769, key=0x162E, uid=10, gid=20, mode=0o640, size_bytes=8192, changed_s=77
    )
    images = RecordedImages()
    sysv.encode([one], images)
    assert sysv.decode(images) == [one]
    assert sysv.decode(RecordedImages()) == []


def test_another_segment_of_the_same_id():
    one = sysv.Segment(shm_id=3, key=5, uid=0, gid=0, mode=0o600, size_bytes=8192, changed_s=77)
    assert one.is_same(replace(one, mode=0o640))
    assert one.is_same(replace(one, changed_s=0))
    assert not one.is_same(replace(one, changed_s=78))
    assert not one.is_same(replace(one, key=6))
    assert not one.is_same(replace(one, size_bytes=4096))
