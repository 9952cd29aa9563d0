# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.errors import Refused
from torpor.engine.kernel import netlink
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId
from torpor.engine.sockets import packet
from torpor.engine.sockets.packet import KIND

ASK = (16, netlink.NETLINK_SOCK_DIAG, netlink.request(20, packet.REQUEST))
DONE = struct.pack("=IHHIIi", 20, netlink.NLMSG_DONE, 2, 1, 0, 0)
RING = (8192, 2, 2048, 8, 60, 0, 0)


def attribute(kind, raw):
    return struct.pack("=HH", 4 + len(raw), kind) + raw + bytes(-len(raw) % 4)


def answer(inode, kind=3, protocol=0x0800, version=2, fanout=4711):
    body = packet.HEAD.pack(17, kind, protocol, inode, 0, 0)
    body += attribute(0, packet.INFO.pack(1, version, 64, 0, 16, 1 | 2 | 16))
    body += attribute(1, packet.MEMBER.pack(1, 1, 0, 6, bytes([1, 0, 94, 0, 0, 9])))
    body += attribute(2, packet.RING.pack(*RING)) + attribute(4, struct.pack("=I", fanout))
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body + DONE


def view(reply, **more):
    options = {(1, 39): struct.pack("<i", 17), (263, 23): struct.pack("<i", 1)}
    return RecordedFd(
        link="socket:[7]", st_mode=0o140777, st_ino=7, flags=0o2, sockopts=options,
        netlinks={ASK: reply}, socket_name=struct.pack("<HHi12x", 17, 8, 1), **more,
    )  # fmt: skip


def test_all_of_it_comes_back():
    one = view(answer(7))
    assert KIND.matches(one)
    states = {FileId(1): KIND.collect(one, dump_context())}
    back, images = through_images(KIND, states)
    assert back == states
    ((_, entry),) = images.files("PACKETSK")
    assert (entry.protocol, entry.ifindex, entry.fanout) == (0x0008, 1, 4711)
    assert (entry.aux_data, entry.loss, entry.rx_ring.block_nr) == (True, True, 2)
    what = "  # fd 3 -> packet socket 0x0800, interface 1"
    lines = described(KIND, back, plan_context(1)).splitlines()
    assert [line.replace(what, "") for line in lines] == [
        "socket(17, 3, 0) → new513",
        "dup3($new513, 513, 0)",
        "close($new513)",
        "setsockopt(513, 263, 10, <4 bytes>, 4): VERSION = 2",
        "setsockopt(513, 263, 12, <4 bytes>, 4): RESERVE = 64",
        "setsockopt(513, 263, 17, <4 bytes>, 4): TIMESTAMP = 16",
        "setsockopt(513, 263, 8, <4 bytes>, 4): AUX_DATA = 1",
        "setsockopt(513, 263, 14, <4 bytes>, 4): LOSS = 1",
        "setsockopt(513, 263, 23, <4 bytes>, 4): PACKET_IGNORE_OUTGOING = 1",
        "setsockopt(513, 263, 1, <16 bytes>, 16): ADD_MEMBERSHIP of type 0",
        "setsockopt(513, 263, 5, <28 bytes>, 28): RX_RING of 2 blocks",
        "bind(513, interface 1, 20): interface 1",
        "setsockopt(513, 263, 18, <4 bytes>, 4): FANOUT",
    ]  # fmt: skip


def test_a_ring_of_an_older_version_is_asked_for_with_less():
    states = {FileId(1): KIND.collect(view(answer(7, version=1)), dump_context())}
    assert "<16 bytes>, 16): RX_RING" in described(KIND, states, plan_context(1)).replace(
        "  # fd 3 -> packet socket 0x0800, interface 1", ""
    )


def test_the_old_type_is_bound_by_name():
    one = view(answer(7, kind=10))
    one.socket_name = struct.pack("<H14sH", 17, b"lo", 8)
    states = {FileId(1): KIND.collect(one, dump_context())}
    back, _ = through_images(KIND, states)
    assert back == states
    text = described(KIND, back, plan_context(1))
    assert "socket(17, 10, 8)" in text
    assert "bind(513, lo, 16)" in text


def test_what_the_kernel_does_not_tell_is_refused():
    with pytest.raises(Refused, match="packet_diag"):
        KIND.collect(view(DONE), dump_context())


def test_a_group_that_a_program_shares_out_is_refused():
    with pytest.raises(Refused, match="shared out by a program"):
        KIND.collect(view(answer(7, fanout=6 << 16 | 9)), dump_context())
