# SPDX-License-Identifier: Apache-2.0
"""Datagrams that wait, and multicast memberships: through images, to the plan."""

import struct

import pytest

from torpor.engine.errors import Refused
from torpor.engine.kernel.abi import AF, TCPState
from torpor.engine.kernel.recorded import RecordedImages, described, plan_context, through_images
from torpor.engine.kind import End, FileId, Message, TcpRepair
from torpor.engine.options import TcpPolicy
from torpor.engine.sockets import inet_state, multicast
from torpor.engine.sockets.address import Address
from torpor.engine.sockets.inet import KIND
from torpor.engine.sockets.segment import checksum, datagram
from torpor.engine.sockets.test_inet import DGRAM, at, collect, tcp_info, view, word

MEMORY = {(1, 55): struct.pack("<9I", 768, *[0] * 8)}
IGMP = """Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     3      V3
\t\t\t\t040201EF     1 0:00000000\t\t0
\t\t\t\t010000E0     1 0:00000000\t\t0
4\teth0      :     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
"""
IGMP6 = "1    lo              ff150000000000000000000000000005     1 00000004 0\n"


def waiting(*messages, source="127.0.0.1", **more):
    options = MEMORY | more.pop("options", {})
    return view(7, at(source, 53), kind=DGRAM, messages=messages, options=options, **more)


def plan(states, **more):
    return described(KIND, states, plan_context(*states, tcp_repair=True, **more))


def test_datagrams_are_sent_again_before_the_socket_is_connected():
    sender = at("10.0.0.9", 4711)
    states, refused = collect([waiting(Message(data=b"odd", address=sender))])
    assert not refused
    back, images = through_images(KIND, states)
    assert back == states
    ((entry, payload),) = images.entries("sk-queues")
    assert (entry.id_for, entry.length, payload) == (1, 3, b"odd")
    lines = [line.partition("  #")[0] for line in plan(back).splitlines()]
    at_raw = lines.index("socket(2, 3, 255) → udp_raw2")
    assert lines[at_raw + 1] == (
        "sendto($udp_raw2, <datagram of 31 bytes>, 31, 0, 127.0.0.1:0, 16)"
    )
    assert lines.index("close($udp_raw2)") > at_raw


def test_datagrams_without_the_right_or_at_a_shared_port_are_dropped_with_a_warning():
    message = Message(data=b"x", address=at("10.0.0.9", 4711))
    states, _ = collect([waiting(message)])
    warnings = []
    described(KIND, states, plan_context(1, warn=warnings.append))
    both, _ = collect([waiting(message), view(8, at("0.0.0.0", 53), kind=DGRAM)])
    plan(both, warn=warnings.append)
    assert [w.endswith("1 queued datagrams are dropped") for w in warnings] == [True, True]


def test_datagrams_that_cannot_be_peeked_at_are_told():
    warnings = []
    states, _ = collect([waiting()], warn=warnings.append)
    assert not states[1].queue
    assert "queued datagrams are dropped" in warnings[0]


def test_an_error_that_waits_is_told():
    warnings = []
    collect([view(7, at("127.0.0.1", 53), kind=DGRAM, poll=8)], warn=warnings.append)
    assert "an error that waits to be told is lost" in warnings[0]


def test_a_datagram_as_a_packet():
    here, there = Address(2, bytes([127, 0, 0, 1]), 53), Address(2, bytes([10, 0, 0, 9]), 4711)
    packet = datagram(there, here, b"odd")
    assert len(packet) == struct.unpack_from(">H", packet, 2)[0] == 31
    assert checksum(packet[:20]) == 0
    assert struct.unpack_from(">HHH", packet, 20) == (4711, 53, 11)
    pseudo = there.ip + here.ip + struct.pack(">II", 11, 17)
    assert checksum(pseudo + packet[20:] + b"\0") == 0
    lite = datagram(there, here, b"odd", 136)
    assert (lite[9], struct.unpack_from(">H", lite, 24)[0]) == (136, 0)


def test_groups_of_both_tables():
    assert list(multicast.parse_igmp(IGMP)) == [
        (1, bytes([239, 1, 2, 4])), (1, bytes([224, 0, 0, 1])), (4, bytes([224, 0, 0, 1])),
    ]  # fmt: skip
    assert list(multicast.parse_igmp6(IGMP6)) == [(1, bytes.fromhex("ff15" + "0" * 27 + "5"))]


def test_memberships_are_joined_again():
    group, blocked = bytes([239, 1, 2, 4]), bytes([10, 9, 9, 1])
    one = view(
        7, at("127.0.0.1", 53), kind=DGRAM, net_tables={"igmp": IGMP},
        filters={(0, 1, group): (True, (blocked,)), (0, 4, bytes([224, 0, 0, 1])): (False, ())},
    )  # fmt: skip
    states, _ = collect([one])
    assert [m.group for m in states[1].groups] == [group, bytes([224, 0, 0, 1])]
    back, _ = through_images(KIND, states)
    assert back == states
    text = plan(back)
    assert "joins 239.1.2.4 on interface 1" in text
    assert "blocks 10.9.9.1 in 239.1.2.4 on interface 1" in text
    assert "224.0.0.1" not in text  # a filter that lets nobody in


def test_a_client_that_waits_does_not_go_on_by_itself():
    repair = TcpRepair(received=b"", sent=b"", in_sequence=1, out_sequence=1)
    server, client = at("127.0.0.1", 80), at("127.0.0.1", 4711)
    deferred = {(6, 9): word(30)}
    for waits, options in ((1, {}), (0, deferred)):
        info = tcp_info(TCPState.LISTEN, unacked=waits, sacked=5)
        states, refused = collect(
            [
                view(7, server, info=info, fd=3, options=options),
                view(8, client, server, TCPState.ESTABLISHED, fd=4, repair=repair),
            ],
            tcp=TcpPolicy.KEEP,
        )
        assert not refused
        assert inet_state.before_kill(states) == {FileId(2): End.RESET}
        text = plan(states)
        assert "TCP_REPAIR" not in text
        assert "waits to be accepted by" in text


def test_options_whose_values_are_bytes():
    header = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    options = {(1, 61): struct.pack("<iI", 11, 1), (41, 54): header, (41, 57): b""}
    options |= {(1, 39): word(AF.INET6)}
    name = struct.pack("<HxxI16sI", AF.INET6, 0, bytes(15) + b"\1", 0)
    states, refused = collect([view(7, name, kind=DGRAM, options=options)])
    assert not refused
    back, _ = through_images(KIND, states)
    assert back == states
    text = plan(back)
    assert "setsockopt(513, 1, 61, 0b00000001000000, 8)  # fd 3 -> udp [::1]:0: SO_TXTIME" in text
    assert (
        "setsockopt(513, 41, 54, 0000010400000000, 8)  # fd 3 -> udp [::1]:0: IPV6_HOPOPTS" in text
    )


def test_an_option_that_was_four_bytes_once():
    states, _ = collect([waiting(options={(1, 47): struct.pack("<Q", 5 << 32)})])
    assert states[1].options.raws == ((1, 47, struct.pack("<Q", 5 << 32)),)
    images = RecordedImages()
    KIND.encode(states, images)
    images.extra("sockets", "1", [[1, 47, 1000]])
    assert KIND.decode(images)[1].options.raws == ((1, 47, struct.pack("<Q", 1000)),)


def test_who_may_route_multicast_is_refused():
    igmp = {"raw": "", "ip_mr_vif": "Interface BytesIn\n 0 eth0 0 0 0 0 00000\n"}
    one = view(7, at("0.0.0.0", 2), kind=3, options={(1, 38): word(2)}, net_tables=igmp)
    with pytest.raises(Refused, match="MRT_INIT"):
        collect([one])
    alert = {(1, 39): word(AF.INET6), (1, 38): word(255), (41, 22): word(1)}
    alert = view(7, at("0.0.0.0", 255), kind=3, options=alert)
    with pytest.raises(Refused, match="router alert"):
        collect([alert])
