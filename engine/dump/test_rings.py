# SPDX-License-Identifier: Apache-2.0
import os
import struct

import pytest

from torpor.engine import native
from torpor.engine.dump import rings
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.sockets.packet import PacketState

BLOCK, COUNT, SENDING = 4096, 4, 8192
SIZE = BLOCK * COUNT + SENDING
STATE = PacketState(
    kind=3, protocol=8, flags=2, version=2, receive_ring=(BLOCK, COUNT, 2048, 8, 60, 0, 0),
    send_ring=(SENDING, 1, 2048, 4, 0, 0, 0),
)  # fmt: skip


def area(start, end, offset=0, prot=3):
    return Area(start=start, end=end, prot=prot, backing=Backing.PACKETS, offset=offset)


def with_blocks(monkeypatch, *heads):
    """(status, number) of each block, as a task at address 0 shows them."""

    def read(_, at, size):
        return struct.pack("<8xI12xQ", *heads[at // BLOCK])[:size]

    monkeypatch.setattr(native, "read_memory", read)


def turned(mapping):
    return [(a.start, a.end, a.offset) for a in rings.turned(mapping, STATE, os.getpid())]


@pytest.mark.parametrize(
    ("heads", "block"),
    [
        ([(0, 0)] * 4, 0),
        ([(0, 1), (0, 0), (0, 0), (0, 0)], 0),
        ([(0, 1), (0, 2), (0, 3), (0, 0)], 2),
        ([(0, 5), (1, 6), (1, 7), (0, 8)], 1),
        ([(1, 5), (0, 6), (1, 3), (1, 4)], 2),
    ],
)
def test_the_block_that_is_waited_for_becomes_the_first(monkeypatch, heads, block):
    with_blocks(monkeypatch, *heads)
    done = block * BLOCK
    wanted = [(0, SIZE, 0)]
    if done:
        wanted = [
            (0, done, BLOCK * COUNT - done), (done, BLOCK * COUNT, 0),
            (BLOCK * COUNT, SIZE, BLOCK * COUNT),
        ]  # fmt: skip
    assert turned([area(0, SIZE)]) == wanted


def test_pieces_of_a_turned_mapping_are_one():
    pieces = [area(0, 8192, 8192), area(8192, 16384, 0), area(16384, SIZE, 16384)]
    again = [area(a.start + (1 << 20), a.end + (1 << 20), a.offset) for a in pieces]
    assert rings.whole([*again, *pieces], SIZE) == [pieces, again]
    assert rings.whole([area(0, SIZE)], SIZE) == [[area(0, SIZE)]]
    assert rings.whole(pieces[:2], SIZE) is None
    assert rings.whole([*pieces[:2], area(16384, SIZE, 16384, prot=1)], SIZE) is None
    assert rings.whole([*pieces[:2], area(20480, SIZE + 4096, 16384)], SIZE) is None
