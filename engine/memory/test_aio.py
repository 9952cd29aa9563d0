# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.errors import BadImage
from torpor.engine.memory import aio
from torpor.engine.memory.areas import Area, Backing

AREA = Area(start=0x7000, end=0x8000, prot=3, backing=Backing.AIO)
EVENTS = [struct.pack("<QQqq", i, i, i, i) for i in range(127)]


def content(head, tail, room=127, magic=aio.MAGIC):
    return struct.pack("<8I", 0, room, head, tail, magic, 1, 0, 32) + b"".join(EVENTS)


def test_events_between_head_and_tail():
    assert aio.parse(AREA, content(5, 5)).events == b""
    assert aio.parse(AREA, content(5, 7)).events == EVENTS[5] + EVENTS[6]
    assert aio.parse(AREA, content(126, 1)).events == EVENTS[126] + EVENTS[0]


def test_a_length_gives_a_number_of_requests_with_the_same_length():
    assert aio.requests_for(4096) == 62  # as criu has it
    for pages in (1, 2, 3, 17):
        asked = aio.requests_for(pages * 4096)
        assert -(-(32 + 32 * (2 * asked + 2)) // 4096) == pages
        assert -(-(32 + 32 * (2 * (asked + 1) + 2)) // 4096) == pages + 1
    assert aio.encode(AREA).nr_req == 62


@pytest.mark.parametrize("raw", [content(1, 1, magic=7), content(127, 0), content(0, 0, room=128)])
def test_bad_rings(raw):
    with pytest.raises(BadImage):
        aio.parse(AREA, raw)
