# SPDX-License-Identifier: Apache-2.0
"""Rings of io_setup(2), asynchronous input and output of files.

Facts (probed on v6.18):
- A ring is an area `/[aio] (deleted)`; its address is the id that the program has. mremap(2)
  moves it, and its id with it. Its length comes from the number of requests that was asked for,
  rounded up so that the number cannot be had back; the length gives the same room again.
- The area starts with id, room, head and tail, magic; events of completed requests that nobody
  took are between head and tail. The kernel keeps a tail of its own: requests that complete at
  once (reads of /dev/null) move it, then the events can be overwritten.
- A fork's copy of the area belongs to no ring. It comes back as a ring of the child.
- Requests under way are not to be seen. Those of disks end by themselves: /sys/block/*/inflight.

Source: fs/aio.c (v6.18); CRIU's images.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.errors import BadImage
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.memory.areas import Area, Backing

HEADER = struct.Struct("<8I")
EVENT_BYTES = 32
IOCB = struct.Struct("<QIIHhIQQqQII")
MAGIC = 0xA10A10A1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Events that were completed and not taken, oldest first."""

    start: int
    size_bytes: int
    events: bytes

    @property
    def requests(self) -> int:
        """What to ask of io_setup for a ring of the same length."""
        return requests_for(self.size_bytes)


def requests_for(size_bytes: int) -> int:
    """The kernel doubles what is asked for, and adds two (ioctx_alloc, aio_setup_ring)."""
    return ((size_bytes - HEADER.size) // EVENT_BYTES - 2) // 2


def parse(area: Area, content: bytes) -> Ring:
    """From the content of an area. Raises BadImage."""
    _, room, head, tail, magic, *_ = HEADER.unpack_from(content)
    slots = content[HEADER.size : HEADER.size + room * EVENT_BYTES]
    if magic != MAGIC or len(slots) != room * EVENT_BYTES or not max(head, tail) < max(room, 1):
        raise BadImage("is no ring of events", subject=area.subject)
    at, end = head * EVENT_BYTES, tail * EVENT_BYTES
    events = slots[at:end] if at <= end else slots[at:] + slots[:end]
    return Ring(start=area.start, size_bytes=area.size_bytes, events=events)


def empty_read(fd: int) -> bytes:
    """An iocb that completes at once with no effect: IOCB_CMD_PREAD of no bytes."""
    return IOCB.pack(0, 0, 0, 0, 0, fd, 0, 0, 0, 0, 0, 0)


def encode(area: Area) -> Any:  # noqa: ANN401
    """CRIU's aio_ring_entry of an area."""
    return pb.aio_ring_entry(
        id=area.start, nr_req=requests_for(area.size_bytes), ring_len=area.size_bytes
    )


def rings_of(areas: Sequence[Area]) -> list[Area]:
    """The areas that are rings."""
    return [area for area in areas if area.backing is Backing.AIO]
