# SPDX-License-Identifier: Apache-2.0
"""Packet sockets on the loopback device, of every type, with rings and memberships.

They see a protocol of their own, for others use the loopback device as well.
"""

import mmap
import os
import socket
import struct
import sys
import time
from pathlib import Path

from files_base import workload

AF_PACKET = 17
SOL_PACKET = 263
OWN = 0xA000 | os.getpid() & 0xFFF


def option(one, number, value):
    one.setsockopt(SOL_PACKET, number, value)


def send(data):
    with socket.socket(AF_PACKET, socket.SOCK_DGRAM, 0) as one:
        one.sendto(data, ("lo", OWN, 0, 0, bytes(6)))


def plain(_):
    """Two that see, with what they were told."""
    index = socket.if_nametoindex("lo")
    raw = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
    option(raw, 10, 1)
    option(raw, 8, 1)
    option(raw, 9, 1)
    option(raw, 12, 64)
    option(raw, 17, 16)
    option(raw, 23, 1)
    option(raw, 1, struct.pack("iHH8s", index, 0, 6, bytes([1, 0, 94, 0, 0, 9])))
    option(raw, 1, struct.pack("iHH8s", index, 1, 0, b""))
    raw.bind(("lo", OWN))
    cooked = socket.socket(AF_PACKET, socket.SOCK_DGRAM, socket.htons(OWN))
    names = raw.getsockname(), cooked.getsockname()
    idle = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
    yield
    assert (raw.getsockname(), cooked.getsockname()) == names
    assert idle.getsockname()[1] == 0
    cooked.settimeout(10)
    send(b"to be seen")
    while not cooked.recv(2000).endswith(b"to be seen"):
        pass


def rings(_):
    """Rings of all versions, not mapped; a fanout group."""
    made = []
    for version in (0, 1):
        one = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
        option(one, 10, version)
        option(one, 14, 1)
        option(one, 5, struct.pack("4I", 4096, 2, 2048, 4))
        option(one, 13, struct.pack("4I", 8192, 1, 2048, 4))
        made.append(one)
    third = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
    option(third, 10, 2)
    option(third, 5, struct.pack("7I", 8192, 2, 2048, 8, 60, 0, 0))
    group = [socket.socket(AF_PACKET, socket.SOCK_RAW, socket.htons(OWN)) for _ in range(2)]
    for one in group:
        one.bind(("lo", OWN))
        option(one, 18, 4711)
    yield
    for one in (*made, third):  # a ring that is there cannot be made again with another version
        try:
            option(one, 10, 1)
            raise AssertionError
        except OSError:
            pass
    assert [one.getsockopt(SOL_PACKET, 18) & 0xFFFF for one in group] == [4711, 4711]


def mapped(_):
    """Rings that are mapped, by a child as well; each sees the next packet in the first frame."""
    one = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
    option(one, 10, 1)
    option(one, 5, struct.pack("4I", 4096, 4, 2048, 8))
    option(one, 13, struct.pack("4I", 4096, 2, 2048, 4))
    area = mmap.mmap(one.fileno(), 6 * 4096)
    unbound = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
    option(unbound, 5, struct.pack("4I", 4096, 1, 2048, 2))
    read_only = mmap.mmap(unbound.fileno(), 4096, prot=mmap.PROT_READ)
    asked, asks = os.pipe()
    child = os.fork()
    if not child:
        os.read(asked, 1)
        os._exit(not area[0] & 1)
    one.bind(("lo", OWN))
    yield
    send(b"to be seen")
    while not area[0] & 1:
        time.sleep(0.01)
    assert b"to be seen" in area[:2048]
    assert read_only[:] == bytes(4096)
    os.write(asks, b"x")
    assert os.waitpid(child, 0)[1] == 0


def numbers(area, size):
    """Status and number of each block (TPACKET_V3)."""
    return [
        struct.unpack_from("<8xI12xQ", area, at) for at in range(0, len(area) // size * size, size)
    ]


def reading(_):
    """One that reads block after block, and waits for the fourth of them; a sending ring behind."""
    size, count = 8192, 6
    one = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
    option(one, 10, 2)
    option(one, 5, struct.pack("7I", size, count, 2048, size * count // 2048, 20, 0, 0))
    option(one, 13, struct.pack("7I", size, 1, 2048, size // 2048, 0, 0, 0))
    area = mmap.mmap(one.fileno(), size * (count + 1))
    one.bind(("lo", OWN))

    def read(block, text):
        send(text)
        deadline = time.monotonic() + 10
        while not area[block * size + 8] & 1:
            assert time.monotonic() < deadline, numbers(area, size)
            time.sleep(0.005)
        assert text in area[block * size : (block + 1) * size]
        struct.pack_into("<I", area, block * size + 8, 0)

    for block in range(4):
        read(block, b"before %d" % block)
    yield
    for block in (*range(4, count), *range(count), 0):
        read(block, b"after %d" % block)


BODIES = {"plain": plain, "rings": rings, "mapped": mapped, "reading": reading}

if __name__ == "__main__":
    assert Path(sys.argv[1])
    workload(BODIES[sys.argv[2]])
