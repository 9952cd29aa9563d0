# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.errors import Refused
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import netlink
from torpor.engine.kernel.abi import SIOCOUTQ, SIOCOUTQNSD, TCPState
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId, Holder, Message
from torpor.engine.options import TcpPolicy
from torpor.engine.sockets import inet
from torpor.engine.sockets.address import Address, from_words, parse, words
from torpor.engine.sockets.inet import KIND

SOL, TCP = 1, 6
DONE = struct.pack("=IHHIIi", 20, netlink.NLMSG_DONE, 2, 1, 0, 0)
INET, INET6, STREAM, DGRAM = 2, 10, 1, 2


def word(value):
    return struct.pack("<i", value)


def at(text, port):
    raw = bytes(int(n) for n in text.split("."))
    return struct.pack("<H", INET) + struct.pack(">H", port) + raw + bytes(8)


def tcp_info(state, unacked=0, sacked=0, acked=0, received=0):
    raw = bytearray(192)
    raw[0] = state
    struct.pack_into("<II", raw, 24, unacked, sacked)
    struct.pack_into("<QQ", raw, 120, acked, received)
    return bytes(raw)


def view(inode, source, peer=None, state=TCPState.CLOSE, kind=STREAM, **more):
    options = {
        (SOL, 39): word(INET),
        (SOL, 3): word(kind),
        (SOL, 38): word(6 if kind == STREAM else 17),
        (SOL, 72): word(0),
        (TCP, 11): more.pop("info", tcp_info(state)),
    }
    tcp = more.pop("diag", b"") + DONE
    asked = {
        (16, 4, netlink.inet_diag_request(INET, 17)): DONE,
        (16, 4, netlink.inet_diag_request(INET, 6, signed=True)): tcp,
        (16, 4, netlink.inet_diag_request(INET6, 6, signed=True)): tcp,
    }
    return RecordedFd(
        netlinks=asked, link=f"socket:[{inode}]", st_mode=0o140777, st_ino=inode, flags=0o2,
        sockopts=options | more.pop("options", {}), socket_name=source, socket_peer=peer,
        ioctls={SIOCOUTQ: word(0), SIOCOUTQNSD: word(0)} | more.pop("ioctls", {}), **more,
    )  # fmt: skip


def collect(views, **more):
    context = dump_context(
        views={FileId(i): v for i, v in enumerate(views, 1)},
        holders={FileId(i): [Holder(task=41, fd=2 + i)] for i, v in enumerate(views, 1)},
        **more,
    )
    states = {i: KIND.collect(v, context) for i, v in context.views.items()}
    return states, list(KIND.check(states, context))


def connection(**more):
    """Both ends of a connection inside the tree, the second one accepted."""
    a, b = at("127.0.0.1", 4711), at("127.0.0.1", 80)
    return [
        view(7, a, b, TCPState.ESTABLISHED, fd=3, **more),
        view(8, b, a, TCPState.ESTABLISHED, fd=4, info=tcp_info(1, received=5),
             messages=[Message(data=b"hello")]),
    ]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, True), ({(SOL, 39): word(1)}, False), ({(SOL, 38): word(132)}, False),
    ({(SOL, 3): word(3)}, True), ({(SOL, 38): word(262)}, True),
])  # fmt: skip
def test_matches(changes, expected):
    assert KIND.matches(view(7, at("0.0.0.0", 0), options=changes)) is expected


def test_listener():
    info = tcp_info(TCPState.LISTEN, unacked=0, sacked=128)
    options = {(SOL, 15): word(1), (TCP, 1): word(1)}
    states, refused = collect([view(7, at("0.0.0.0", 80), info=info, options=options)])
    assert not refused
    assert (states[1].state, states[1].backlog) == (TCPState.LISTEN, 128)
    back, _ = through_images(KIND, states)
    assert back == states
    what = "  # fd 3 -> tcp 0.0.0.0:80 listening"
    assert described(KIND, back, plan_context(1)).splitlines() == [
        f"socket(2, 1, 6) → new513{what}",
        f"dup3($new513, 513, 0){what}",
        f"close($new513){what}",
        f"setsockopt(513, 1, 15, 1, 4){what}: SO_REUSEPORT = 1",
        f"setsockopt(513, 1, 2, 1, 4){what}: SO_REUSEADDR = 1",
        f"bind(513, 0.0.0.0:80, 16){what}: 0.0.0.0:80",
        f"listen(513, 128){what}",
        f"setsockopt(513, 6, 1, 1, 4){what}: TCP_NODELAY = 1",
        f"setsockopt(513, 1, 2, 0, 4){what}: SO_REUSEADDR = 0",
    ]


def test_connection_inside():
    states, refused = collect(connection(info=tcp_info(1, acked=6)))
    assert not refused
    back, images = through_images(KIND, states)
    assert back == states
    assert sorted(images.images) == ["files", "tcp-stream-7", "tcp-stream-8"]
    (one, _), (two, payload) = (next(images.entries(f"tcp-stream-{n}")) for n in (7, 8))
    assert payload == b"hello"
    assert (one.outq_seq, one.inq_seq) == (two.inq_seq, two.outq_seq)
    client = "  # fd 3 -> tcp 127.0.0.1:4711 to 127.0.0.1:80"
    server = "  # fd 4 -> tcp 127.0.0.1:80 to 127.0.0.1:4711"
    assert described(KIND, back, plan_context(1, 2)).splitlines() == [
        f"socket(2, 1, 0) → tcp_listener1{server}: listener for the purpose",
        f"setsockopt($tcp_listener1, 1, 2, 1, 4){server}: SO_REUSEADDR = 1",
        f"bind($tcp_listener1, 127.0.0.1:80, 16){server}: 127.0.0.1:80",
        f"listen($tcp_listener1, 16){server}",
        f"socket(2, 1, 0) → tcp_client2{client}",
        f"setsockopt($tcp_client2, 1, 2, 1, 4){client}: SO_REUSEADDR = 1",
        f"bind($tcp_client2, 127.0.0.1:4711, 16){client}: 127.0.0.1:4711",
        f"connect($tcp_client2, 127.0.0.1:80, 16){client}: to 127.0.0.1:80",
        f"accept4($tcp_listener1, 0, 0, 0) → tcp_accepted3{server}",
        f"dup3($tcp_client2, 513, 0){client}",
        f"close($tcp_client2){client}",
        f"dup3($tcp_accepted3, 514, 0){server}",
        f"close($tcp_accepted3){server}",
        "close($tcp_listener1)  # only helped",
        f"sendto(513, <5 bytes>, 5, 0x4040, 0, 0){server}: queued again",
        f"setsockopt(513, 1, 2, 0, 4){client}: SO_REUSEADDR = 0",
        f"setsockopt(514, 1, 2, 0, 4){server}: SO_REUSEADDR = 0",
    ]


@pytest.mark.parametrize("more", [
    {"ioctls": {SIOCOUTQNSD: word(100)}}, {"info": tcp_info(1, acked=1000)},
])  # fmt: skip
def test_bytes_that_are_nowhere_to_be_read_are_refused(more):
    _, refused = collect(connection(**more))
    assert [r.what for r in refused] == [inet.UNSENT.what]


def test_tls_in_the_kernel_is_refused():
    _, refused = collect(connection(options={(TCP, 31): b"tls\0"}))
    assert [(r.what, r.cause) for r in refused] == [(inet.ULP.what, "tls")]


@pytest.mark.parametrize("policy", [TcpPolicy.REFUSE, TcpPolicy.CLOSE])
def test_outside(policy):
    warnings = []
    outside = view(7, at("10.0.0.1", 4711), at("10.0.0.2", 443), TCPState.ESTABLISHED,
                   messages=[Message(data=b"unread")])  # fmt: skip
    states, refused = collect([outside], tcp=policy, warn=warnings.append)
    if policy is TcpPolicy.REFUSE:
        assert "10.0.0.1:4711 to 10.0.0.2:443" in refused[0].cause
        return
    assert not refused
    assert "comes back closed" in warnings[0]
    back, _ = through_images(KIND, states)
    assert back == states
    what = "  # fd 3 -> tcp 10.0.0.1:4711 to 10.0.0.2:443"
    assert described(KIND, back, plan_context(1)).splitlines() == [
        f"socket(2, 1, 0) → tcp_closed1{what}",
        f"socket(2, 1, 0) → tcp_loopback3{what}: stands for peers outside",
        f"bind($tcp_loopback3, 127.0.0.1:0, 16){what}",
        f"listen($tcp_loopback3, 16){what}",
        f"getsockname($tcp_loopback3, its address, 28){what}",
        f"connect($tcp_closed1, its address, 16){what}: over the loopback device, to be closed",
        f"accept4($tcp_loopback3, 0, 0, 0) → tcp_other2{what}",
        f"sendto($tcp_other2, <6 bytes>, 6, 0x4040, 0, 0){what}: queued again",
        f"setsockopt($tcp_other2, 1, 13, {{1, 0}}, 8){what}: close by a reset",
        f"close($tcp_other2){what}: the peer resets: ECONNRESET",
        f"dup3($tcp_closed1, 513, 0){what}",
        f"close($tcp_closed1){what}",
        "close($tcp_loopback3)  # only helped",
    ]


@pytest.mark.parametrize("policy", [TcpPolicy.REFUSE, TcpPolicy.CLOSE])
def test_connections_that_wait_at_a_listener(policy):
    warnings = []
    info = tcp_info(TCPState.LISTEN, unacked=2, sacked=5)
    _, refused = collect([view(7, at("0.0.0.0", 80), info=info)], tcp=policy,
                         warn=warnings.append)  # fmt: skip
    assert bool(refused) == (policy is TcpPolicy.REFUSE)
    assert bool(warnings) == (policy is TcpPolicy.CLOSE)


def test_connections_that_wait_are_lost_with_leave():
    warnings = []
    info = tcp_info(TCPState.LISTEN, unacked=2, sacked=5)
    _, refused = collect([view(7, at("0.0.0.0", 80), info=info)], tcp=TcpPolicy.KEEP,
                         skip_in_flight=True, warn=warnings.append)  # fmt: skip
    assert not refused
    assert "are lost" in warnings[0]


def test_criu_s_tcp_close_closes_all():
    states, refused = collect(connection(info=tcp_info(1, acked=6)), tcp=TcpPolicy.CLOSE_ALL)
    assert not refused
    images = RecordedImages()
    images.add("inventory", pb.inventory_entry(img_version=2, tcp_close=True))
    KIND.encode(states, images)
    assert sorted(images.images) == ["files", "inventory"]
    back = KIND.decode(images)
    assert back == states
    lines = described(KIND, back, plan_context(1, 2)).splitlines()
    assert not [line for line in lines if line.startswith(("bind", "connect"))]
    assert [line.partition(")")[0] for line in lines if "shutdown" in line] == [
        "shutdown(513, 2", "shutdown(514, 2",
    ]  # fmt: skip


@pytest.mark.parametrize(("state", "lost"), [(1, True), (5, False)])
def test_mptcp_is_refused_when_connected(state, lost):
    one = view(7, at("10.0.0.1", 4711), at("10.0.0.2", 443), state,
               options={(SOL, 38): word(262)})  # fmt: skip
    with pytest.raises(Refused, match="MPTCP"):
        collect([one], tcp=TcpPolicy.REFUSE if lost else TcpPolicy.KEEP)


def test_data_for_a_server_that_has_not_accepted_is_refused():
    info = tcp_info(TCPState.LISTEN, unacked=1, sacked=5)
    client = view(8, at("127.0.0.1", 9), at("127.0.0.1", 80), TCPState.ESTABLISHED)
    _, refused = collect([view(7, at("0.0.0.0", 80), info=info), client])
    assert not refused
    client.sockopts = dict(client.sockopts) | {(TCP, 11): tcp_info(1, acked=50)}
    _, refused = collect([view(7, at("0.0.0.0", 80), info=info), client])
    assert [r.what for r in refused] == [inet.UNACCEPTED_DATA.what]


def test_address_of_a_pod_that_moved():
    warnings = []
    a, b = at("10.0.0.9", 4711), at("10.0.0.9", 80)
    views = [view(7, a, b, TCPState.ESTABLISHED), view(8, b, a, TCPState.ESTABLISHED)]
    states, _ = collect(views)
    context = plan_context(1, 2, new_container=True, address_map={"10.0.0.9": "10.1.0.3"})
    assert "bind($tcp_client2, 10.1.0.3:4711" in described(KIND, states, context)
    context = plan_context(1, 2, new_container=True, warn=warnings.append)
    assert "bind($tcp_client2, 127.0.0.1:4711" in described(KIND, states, context)
    assert "loopback" in warnings[0]


def test_udp_address_that_connect_chose_is_chosen_anew():
    udp = view(7, at("10.0.0.9", 4711), at("10.0.0.53", 53), kind=DGRAM)
    states, _ = collect([udp])
    back, _ = through_images(KIND, states)
    assert back == states
    assert "bind(513, 10.0.0.9:4711" in described(KIND, back, plan_context(1))
    text = described(KIND, back, plan_context(1, new_container=True))
    assert "bind(513, 0.0.0.0:4711" in text
    assert "connect(513, 10.0.0.53:53" in text


def test_raw_sockets_are_bound_to_addresses_only():
    icmp = {(SOL, 38): word(1), (0, 3): word(0), (255, 1): word(1), (SOL, 2): word(1)}
    views = [view(7, at("0.0.0.0", 1), kind=3, options=icmp),
             view(8, at("10.0.0.1", 1), kind=3, options=icmp)]  # fmt: skip
    states, refused = collect(views)
    assert not refused
    back, images = through_images(KIND, states)
    assert back == states
    entries = [message for _, message in images.files("INETSK")]
    assert [[*e.ip_opts.raw.icmpv_filter] for e in entries] == [[1], [1]]
    lines = described(KIND, back, plan_context(1, 2)).splitlines()
    assert lines[0] == "socket(2, 3, 1) → new513  # fd 3 -> raw(1) 0.0.0.0:1"
    assert [line.split(",")[0] for line in lines if line.startswith("bind")] == ["bind(514"]
    assert sum("ICMP_FILTER = 1" in line for line in lines) == 2


def test_the_peer_of_a_raw_socket_is_in_the_table():
    table = "head\n   1: 0100007F:00FD 0200007F:0000 01 0:0 00:0 0 0 0 7 2 0 0\n"
    options = {(SOL, 38): word(253), (0, 3): word(0)}
    one = view(7, at("127.0.0.1", 253), kind=3, options=options,
               net_tables={"raw": table})  # fmt: skip
    states, _ = collect([one])
    back, _ = through_images(KIND, states)
    assert back == states
    assert "connect(513, 127.0.0.2:0, 16)" in described(KIND, back, plan_context(1))


def test_a_tunnel_is_refused():
    with pytest.raises(Refused, match="UDP_ENCAP"):
        collect([view(7, at("0.0.0.0", 500), kind=DGRAM, options={(17, 100): word(2)})])


def test_queued_datagrams_are_dropped_with_a_warning():
    warnings = []
    options = {(SOL, 55): word(768) + bytes(32)}
    collect([view(7, at("0.0.0.0", 53), kind=DGRAM, options=options)], warn=warnings.append)
    assert "dropped" in warnings[0]


def test_addresses():
    mapped = bytes(10) + b"\xff\xff\x7f\0\0\1"
    six = Address(INET6, mapped, 80)
    four = parse(at("127.0.0.1", 80))
    assert six.key == four.key
    assert six.loopback
    assert six.in_family(INET) == four
    assert four.in_family(INET6) == six
    assert from_words(INET6, words(six), 80) == six
    assert words(four) == [0x0100007F]
    assert parse(six.data().content) == six
    assert six.moved({"127.0.0.1": "10.0.0.1"}).text == "10.0.0.1"
    assert str(Address(INET6, bytes(15) + b"\1", 5)) == "[::1]:5"


def test_signed_segments_are_refused():
    part = struct.pack("=HH", 4 + 100, 18) + bytes(100)
    payload = struct.pack("=BBBB", INET, TCPState.LISTEN, 0, 0) + bytes(48)
    payload += struct.pack("=5I", 0, 0, 0, 0, 7) + part
    diag = struct.pack("=IHHII", 16 + len(payload), 20, 2, 1, 0) + payload
    server = view(7, at("0.0.0.0", 80), info=tcp_info(TCPState.LISTEN), diag=diag)
    with pytest.raises(Refused, match="signs its segments"):
        collect([server])


def test_a_socket_of_another_network_is_refused():
    with pytest.raises(Refused, match="another network namespace"):
        collect([view(7, at("0.0.0.0", 80), own_network=False)])
