# SPDX-License-Identifier: Apache-2.0
"""Netlink sockets of a live child, and sockets that are refused by name."""

import os
import socket
import struct

import pytest

from torpor.engine.errors import Refused
from torpor.engine.sockets import netlink, other

from .sockets_round import look, replay

pytestmark = pytest.mark.functional

SOL_NETLINK, ADD_MEMBERSHIP, EXT_ACK, LIST = 270, 1, 11, 9
RTM_GETLINK, DUMP = 18, 0x301


def put(*sockets: socket.socket) -> list[int]:
    for i, each in enumerate(sockets):
        os.dup2(each.detach(), 50 + i)
    return [50 + i for i in range(len(sockets))]


def link_request(number: int) -> bytes:
    return struct.pack("=IHHIIB15x", 32, RTM_GETLINK, DUMP, number, 0, 0)


def test_port_groups_and_options() -> None:
    def prepare() -> list[int]:
        plain = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
        monitor.bind((0, 0x11))
        monitor.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, 34)
        monitor.setsockopt(SOL_NETLINK, EXT_ACK, 1)
        monitor.setblocking(False)
        return put(plain, monitor)

    def check() -> None:
        plain, monitor = socket.socket(fileno=50), socket.socket(fileno=51)
        assert plain.getsockname() == (0, 0)
        assert monitor.getsockname() == (done.states[2].port, 0x11)
        assert monitor.getsockopt(SOL_NETLINK, EXT_ACK) == 1
        assert monitor.type == socket.SOCK_DGRAM
        members = struct.unpack("2I", monitor.getsockopt(SOL_NETLINK, LIST, 8))
        assert members == (0x11, 2)
        assert not os.get_blocking(51)
        plain.send(link_request(7))
        assert struct.unpack_from("I", plain.recv(65536), 8)[0] == 7

    done = look(netlink.KIND, prepare)
    assert done.states == done.decoded
    assert done.states[2].groups == (0x11, 2)
    replay(done, check)


def test_waiting_answer_is_refused() -> None:
    def prepare() -> list[int]:
        asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        asked.bind((0, 0))
        asked.send(link_request(1))
        return put(asked)

    with pytest.raises(Refused, match="answer of the kernel"):
        look(netlink.KIND, prepare)


@pytest.mark.root
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "case"),
    [
        (socket.AF_ALG, socket.SOCK_SEQPACKET, 0, "alg-socket"),
        (socket.AF_VSOCK, socket.SOCK_STREAM, 0, "vsock"),
    ],
)
def test_refused_by_name(family: int, kind: int, protocol: int, case: str) -> None:
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as error:
        pytest.skip(f"this kernel cannot make one: {error}")
    limit = next(limit for limit in other.LIMITS if limit.case == case)
    with pytest.raises(Refused) as caught:
        look(other.KIND, lambda: put(socket.socket(family, kind, protocol)))
    assert caught.value.what == limit.what
    assert "fd 50" in caught.value.subject
