# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.errors import KernelError
from torpor.engine.kernel import rtnetlink
from torpor.engine.kernel.rtnetlink import (
    Interface,
    Link,
    Place,
    attribute,
    features,
    interface,
    routes,
)

TUN = Interface(name="tun0", index=7, flags=0x1091, mtu=1400, hardware=65534, queue_length=500,
                info={})  # fmt: skip
TAP = Interface(name="tap0", index=7, flags=0x1003, mtu=1500, hardware=1, queue_length=500,
                info={})  # fmt: skip


def answer(*payloads, kind=16):
    parts = [struct.pack("=IHHII", 16 + len(p), kind, 2, 1, 0) + p for p in payloads]
    return b"".join(parts) + struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def route(*, oif=7, flags=0, table=254, protocol=3, more=b""):
    head = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, table, protocol, 0, 1, flags)
    return head + attribute(1, bytes([10, 9, 0, 0])) + attribute(4, struct.pack("=I", oif)) + more


def test_an_interface():
    conf = struct.pack("=3I", 1, 0, 0xFFFFFFFF)
    families = attribute(2, attribute(1, conf)) + attribute(10, attribute(8, b"\3"))
    payload = struct.pack("=BxHiII", 0, 65534, 7, 0x1091, 0) + b"".join((
        attribute(Link.NAME, b"tun0\0"), attribute(Link.MTU, struct.pack("=I", 1400)),
        attribute(Link.QUEUE_LENGTH, struct.pack("=I", 500)), attribute(Link.FAMILIES, families),
        attribute(Link.INFO, attribute(1, b"tun\0") + attribute(2, attribute(1, b"\4\0\0\0"))),
    ))  # fmt: skip
    found = interface(answer(payload))
    assert (found.name, found.index, found.mtu, found.hardware) == ("tun0", 7, 1400, 65534)
    assert found.conf == (1, 0, 0xFFFFFFFF)
    assert found.gen_mode == 3
    assert rtnetlink.info_number(found, rtnetlink.TUN_OWNER) == 4
    assert rtnetlink.info_number(found, rtnetlink.TUN_GROUP) is None


def test_one_that_is_not_there():
    refused = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -19) + bytes(16)
    with pytest.raises(KernelError, match="netlink"):
        interface(refused)


def test_addresses_come_back_without_times_and_at_once():
    def address(index, family=10):
        parts = attribute(1, bytes(16)) + attribute(6, b"\xff" * 8 + b"times..."[:8])
        return (
            struct.pack("=BBBBI", family, 64, 0x80, 0, index)
            + parts
            + attribute(8, struct.pack("=I", 0x80 | 0x40))
        )

    told = answer(address(7), address(8))
    ((head, rest),) = rtnetlink.addresses(told, TAP)
    assert head == bytes([10, 64, 0x82, 0])
    parts = rtnetlink.attributes(rest)
    assert parts[6] == b"\xff" * 8 + bytes(8)
    assert parts[8] == struct.pack("=I", 0x82)
    ((head, _),) = rtnetlink.addresses(told, TUN)
    assert head[2] == 0x80, "nobody else can have an address of a tun"


def test_routes_that_come_by_themselves_are_left_out():
    told = answer(
        route(more=attribute(5, b"gate")), route(), route(oif=8), route(table=255),
        route(protocol=2), route(flags=0x200),
    )  # fmt: skip
    (direct, by_gateway), lost = routes(told, 7)
    assert lost == 0
    assert 5 not in rtnetlink.attributes(direct[1])
    assert 5 in rtnetlink.attributes(by_gateway[1])
    assert 4 not in rtnetlink.attributes(direct[1])


def test_marks_of_a_dump_are_taken_off():
    ((head, _),), _ = routes(answer(route(flags=0x1 | 0x4 | 0x10)), 7)
    assert struct.unpack("=I", head[8:]) == (4,)


@pytest.mark.parametrize("index", [7, 9])
def test_routes_with_several_hops_are_counted(index):
    hops = struct.pack("=HBBi", 8, 0, 0, index) + struct.pack("=HBBi", 8, 0, 0, 5)
    found, lost = routes(answer(route(oif=0, more=attribute(9, hops))), 7)
    assert found == []
    assert lost == (index == 7)


@pytest.mark.parametrize(
    "pieces",
    [
        rtnetlink.address_message(b"\2\x18\0\0", attribute(1, b"addr")),
        rtnetlink.route_message(bytes(12), attribute(1, b"addr")),
        rtnetlink.settings_message(TAP),
        rtnetlink.gen_mode_message(1),
        rtnetlink.flags_message(1, 1),
        rtnetlink.master_message(),
    ],
)
def test_lengths_count_the_numbers(pieces):
    whole = sum(4 if isinstance(piece, Place) else len(piece) for piece in pieces)
    (said,) = struct.unpack_from("=I", pieces[0])
    assert said == whole
    before = len(pieces[0])
    assert before + 4 * (pieces[1] is Place.INTERFACE) <= whole


def test_active_features():
    bits = b"".join(
        attribute(1, attribute(1, b"\0\0\0\0") + attribute(2, name + b"\0"))
        for name in (b"tx-a", b"tx-b")
    )
    active = attribute(4, attribute(1, b"") + attribute(3, bits))
    assert features(answer(b"\x0b\1\0\0" + active)) == {"tx-a", "tx-b"}
