# SPDX-License-Identifier: Apache-2.0
"""Connections that go on: what TCP_REPAIR told, through images, to the plan."""

import struct

import pytest

from torpor.engine.kernel.abi import TCPState
from torpor.engine.kernel.recorded import described, plan_context, through_images
from torpor.engine.kind import End, TcpRepair
from torpor.engine.options import TcpPolicy
from torpor.engine.sockets import inet, inet_state
from torpor.engine.sockets.inet import KIND
from torpor.engine.sockets.segment import ACK, FIN, checksum, segment
from torpor.engine.sockets.test_inet import at, collect, tcp_info, view

HERE, THERE = at("10.0.0.1", 4711), at("10.0.0.2", 443)
WHAT = "  # fd 3 -> tcp 10.0.0.1:4711 to 10.0.0.2:443"


def info(state):
    raw = bytearray(tcp_info(state))
    raw[5], raw[6] = 7, 0x7A
    return bytes(raw)


def one(state=TCPState.ESTABLISHED, **more):
    values = {
        "received": b"unread", "sent": b"acked-not", "in_sequence": 2000, "out_sequence": 1000,
        "unsent": 3, "mss": 1460, "timestamp": 99, "window": (1994, 500, 600, 700, 1994),
    }  # fmt: skip
    return view(7, HERE, THERE, info=info(state), repair=TcpRepair(**(values | more)))


def kept(view_of_it):
    states, refused = collect([view_of_it], tcp=TcpPolicy.KEEP)
    assert not refused
    assert inet_state.before_kill(states) == {1: End.SILENT}
    back, images = through_images(KIND, states)
    assert back == states
    return back, images


def calls(states, **more):
    """Without subjects."""
    text = described(KIND, states, plan_context(1, tcp_repair=True, **more))
    return [line.replace(WHAT, "") for line in text.splitlines()]


def test_established():
    states, images = kept(one())
    ((entry, payload),) = images.entries("tcp-stream-7")
    assert payload == b"unreadacked-not"
    assert (entry.inq_seq, entry.outq_seq, entry.unsq_len, entry.opt_mask) == (2000, 1000, 3, 7)
    assert (entry.snd_wscale, entry.rcv_wscale, entry.timestamp) == (10, 7, 99)
    assert calls(states) == [
        "socket(2, 1, 6) → new513",
        "dup3($new513, 513, 0)",
        "close($new513)",
        "setsockopt(513, 6, 19, 1, 4): TCP_REPAIR",
        "setsockopt(513, 6, 20, 2, 4): TCP_REPAIR_QUEUE",
        "setsockopt(513, 6, 21, 991, 4): TCP_QUEUE_SEQ",
        "setsockopt(513, 6, 20, 1, 4): TCP_REPAIR_QUEUE",
        "setsockopt(513, 6, 21, 1994, 4): TCP_QUEUE_SEQ",
        "bind(513, 10.0.0.1:4711, 16): 10.0.0.1:4711",
        "setsockopt(513, 6, 2, 1460, 4): TCP_MAXSEG",
        "connect(513, 10.0.0.2:443, 16): 10.0.0.2:443",
        "setsockopt(513, 6, 2, 0, 4): TCP_MAXSEG",
        "setsockopt(513, 6, 22, mss 1460, options 0x7, 32): TCP_REPAIR_OPTIONS",
        "setsockopt(513, 6, 24, 99, 4): TCP_TIMESTAMP",
        "sendto(513, <6 bytes>, 6, 0x4040, 0, 0): waits to be read",
        "setsockopt(513, 6, 20, 2, 4): TCP_REPAIR_QUEUE",
        "sendto(513, <6 bytes>, 6, 0x4040, 0, 0): sent, not acknowledged",
        "setsockopt(513, 6, 20, 0, 4): TCP_REPAIR_QUEUE",
        "setsockopt(513, 6, 29, window 500 700, 20): TCP_REPAIR_WINDOW",
        "setsockopt(513, 0, 4, 0, 0): none, as it is: works out the size of segments",
        "41: setsockopt(3, 6, 19, 0, 4): TCP_REPAIR",
        "41: setsockopt(3, 1, 7, <4 bytes>, 4): room to queue again",
        "41: setsockopt(3, 1, 32, <4 bytes>, 4): room to queue again",
        "41: sendto(3, <3 bytes>, 3, 0x4040, 0, 0): was never sent",
        "41: setsockopt(3, 1, 2, 0, 4): SO_REUSEADDR = 0",
    ]


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (TCPState.FIN_WAIT1, ["shutdown"]),
        (TCPState.FIN_WAIT2, ["shutdown", "acknowledgement"]),
        (TCPState.CLOSE_WAIT, ["FIN of the peer"]),
        (TCPState.LAST_ACK, ["FIN of the peer", "shutdown"]),
        (TCPState.CLOSING, ["shutdown", "FIN of the peer"]),
    ],
)
def test_the_ends_of_a_connection_in_their_order(state, wanted):
    states, _ = kept(one(state, sent=b"", unsent=0))
    lines = [line for line in calls(states) if line.startswith(("shutdown", "sendto($"))]
    assert len(lines) == len(wanted)
    assert all(word in line for word, line in zip(wanted, lines, strict=True))


def test_a_fin_behind_what_was_never_sent_waits_for_it():
    states, _ = kept(one(TCPState.FIN_WAIT1, unsent=4))
    lines = calls(states)
    late = [line for line in lines if line.startswith("41: ")]
    assert not [line for line in lines if line.startswith("shutdown")]
    assert [line.split("(")[0] for line in late if "setsockopt" not in line] == [
        "41: sendto", "41: shutdown",
    ]  # fmt: skip


def test_without_the_right_it_is_refused_and_says_so():
    plain = view(7, HERE, THERE, info=info(1))
    _, refused = collect([plain], tcp=TcpPolicy.KEEP)
    assert [r.what for r in refused] == [inet.NO_RIGHT.what]
    assert "CAP_NET_ADMIN" in refused[0].remedy


def test_where_repair_is_not_permitted_it_comes_back_closed():
    states, _ = kept(one())
    assert "ECONNRESET" in described(KIND, states, plan_context(1))
    assert "shutdown(513, 2)" in described(KIND, states, plan_context(1, tcp_close=True))


def test_urgent_data_is_refused():
    urgent = one()
    urgent.poll = 2
    with pytest.raises(inet.Refused, match="urgent"):
        collect([urgent], tcp=TcpPolicy.KEEP)


def test_a_segment_has_right_checksums():
    source, target = (inet_state.Address(2, bytes([10, 0, 0, n]), n) for n in (1, 2))
    raw = segment(source, target, sequence=5, acked=6, flags=FIN | ACK, window=7)
    assert checksum(raw[:20]) == 0
    assert checksum(raw[12:20] + struct.pack(">II", 20, 6) + raw[20:]) == 0
    assert struct.unpack_from(">HHII", raw, 20) == (1, 2, 5, 6)
    six = [inet_state.Address(10, bytes(15) + bytes([n]), n) for n in (1, 2)]
    raw = segment(*six, sequence=5, acked=6, flags=ACK, window=7)
    assert (len(raw), raw[0] >> 4, raw[6]) == (60, 6, 6)
    assert checksum(raw[8:40] + struct.pack(">II", 20, 6) + raw[40:]) == 0
