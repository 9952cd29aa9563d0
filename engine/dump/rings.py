# SPDX-License-Identifier: Apache-2.0
"""Mapped rings of packet sockets: where the kernel is in them, and how they come back there.

Facts (probed on v6.18):
- A new ring is filled from its first block on, whatever the program waits for. So its mapping is
  turned (mremap(2) of its two parts): the block that the program waits for is the first one of
  the new ring. Seen from the program all blocks follow each other as before.
- With TPACKET_V3 each block has a number in its head, which grows from block to block (0: never
  used); the kernel is in the one with the highest. Those that the program has not given back are
  TP_STATUS_USER: it waits for the oldest of them, and else for the kernel's.
- Blocks of older versions have no such number: they begin at their first frame.

Source: include/uapi/linux/if_packet.h, struct tpacket_block_desc; net/packet/af_packet.c,
prb_open_block (v6.18).
"""

import struct
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torpor.engine import native
from torpor.engine.errors import Error
from torpor.engine.memory.areas import Area
from torpor.engine.sockets.packet import TPACKET_V3, PacketState

HEAD = struct.Struct("<8xI12xQ")
"""Status and number of a block."""
STATUS_USER = 1


def whole(pieces: Sequence[Area], size: int) -> list[list[Area]] | None:
    """The pieces of each mapping of rings with this size; None where one is not whole."""
    found: list[list[Area]] = []
    for piece in sorted(pieces, key=lambda area: area.start):
        last = found[-1] if found else []
        if last and sum(area.size_bytes for area in last) < size:
            last.append(piece)
        else:
            found.append([piece])
    return found if all(_is_whole(one, size) for one in found) else None


def turned(mapping: Sequence[Area], state: PacketState, pid: int) -> list[Area]:
    """The mapping as it has to be of a new ring; ``pid`` stands and has it."""
    first, end = mapping[0], mapping[-1].end
    start, received = first.start, 0
    if state.receive_ring:
        received = state.receive_ring[0] * state.receive_ring[1]
    done = _awaited(start, state, pid) if state.version == TPACKET_V3 and received else 0
    if not done:
        return [replace(first, end=end, offset=0)]
    parts = [(start, start + done, received - done), (start + done, start + received, 0)]
    if start + received < end:
        parts.append((start + received, end, received))
    return [replace(first, start=a, end=b, offset=offset) for a, b, offset in parts]


def _is_whole(mapping: Sequence[Area], size: int) -> bool:
    """One after the other, alike, each part of the rings once."""
    alike = {replace(area, start=0, end=0, offset=0) for area in mapping}
    behind = all(a.end == b.start for a, b in pairwise(mapping))
    at = 0
    for area in sorted(mapping, key=lambda one: one.offset):
        if area.offset != at:
            return False
        at += area.size_bytes
    return len(alike) == 1 and behind and at == size


def _awaited(start: int, state: PacketState, pid: int) -> int:
    """Bytes before the block that the program waits for."""
    size, count = state.receive_ring[:2]
    try:
        raw = [native.read_memory(pid, start + i * size, HEAD.size) for i in range(count)]
    except Error:
        return 0
    heads = [HEAD.unpack(one) for one in raw]
    used = [(number, i) for i, (_, number) in enumerate(heads) if number]
    waiting = [one for one in used if heads[one[1]][0] & STATUS_USER]
    _, block = min(waiting) if waiting else max(used, default=(0, 0))
    return block * size
