# SPDX-License-Identifier: Apache-2.0
import time

import pytest

from torpor.engine.errors import BadImage, Denied
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import clocks
from torpor.engine.kernel.clocks import SECOND_NS, Clocks
from torpor.engine.options import ClockPolicy
from torpor.engine.restore import owntime
from torpor.engine.restore.owntime import Recorded

AUTO, CONTINUE, MACHINE = ClockPolicy.AUTO, ClockPolicy.CONTINUE, ClockPolicy.MACHINE


class Images:
    """Of one image of clocks, or none."""

    def __init__(self, *named):
        self.names = ["core-1", *named]
        self.seconds, self.rest, self.wall = 7, 8, 9

    def message(self, name, kind):
        one = pb.timespec(tv_sec=self.seconds, tv_nsec=self.rest)
        return kind(monotonic=one, boottime=one)

    def extra(self, section, key):
        assert (section, key) == ("dump", "realtime_ns")
        return self.wall


def now(of=0):
    told = clocks.now()
    return Recorded(clocks=Clocks(told.monotonic_ns + of, told.boottime_ns + of),
                    realtime_ns=time.time_ns())  # fmt: skip


def test_what_images_say():
    images = Images("timens-0")
    assert owntime.read(images, images) == Recorded(
        clocks=Clocks(7 * SECOND_NS + 8, 7 * SECOND_NS + 8), realtime_ns=9
    )
    images = Images()
    assert owntime.read(images, images) is None


@pytest.mark.parametrize("wall", [10**400, -5, "x", None])
def test_a_date_that_cannot_be_is_none(wall):
    images = Images("timens-0")
    images.wall = wall
    assert owntime.jump(owntime.read(images, images)) is None


@pytest.mark.parametrize(("seconds", "rest"), [(1 << 40, 0), (0, SECOND_NS)])
def test_a_time_that_cannot_be(seconds, rest):
    images = Images("timens-0")
    images.seconds, images.rest = seconds, rest
    with pytest.raises(BadImage, match="cannot be"):
        owntime.read(images, images)


def test_who_gets_a_namespace():
    assert owntime.offsets(None, AUTO) is None
    assert owntime.offsets(now(), MACHINE) is None
    assert owntime.offsets(now(-SECOND_NS), AUTO) is not None


def test_a_jump_is_told_of():
    assert owntime.jump(None) is None
    assert owntime.jump(Recorded(clocks=Clocks(0, 0))) is None
    assert owntime.jump(now()) is None
    assert "jumps by -100 s" in owntime.jump(now(100 * SECOND_NS))


def test_without_the_rights(monkeypatch):
    monkeypatch.setattr(clocks, "offsets", lambda _: clocks.NONE)
    wanted = Clocks(-5, -5)
    assert owntime.missing(41, wanted, now(), AUTO) is None
    assert "jumps" in owntime.missing(41, wanted, now(100 * SECOND_NS), AUTO)
    with pytest.raises(Denied, match="cannot go on"):
        owntime.missing(41, wanted, now(), CONTINUE)
    with pytest.raises(Denied, match="images do not tell"):
        owntime.missing(41, None, None, CONTINUE)
    monkeypatch.setattr(clocks, "offsets", lambda _: wanted)
    assert owntime.missing(41, wanted, now(100 * SECOND_NS), CONTINUE) is None
