# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.errors import BadImage, KernelError
from torpor.engine.kernel import netlink

HEADER = struct.Struct("=IHHII")
DONE = HEADER.pack(20, netlink.NLMSG_DONE, 2, 1, 0) + bytes(4)


def message(payload: bytes) -> bytes:
    size = HEADER.size + len(payload)
    return HEADER.pack(size, netlink.SOCK_DIAG_BY_FAMILY, 2, 1, 0) + payload + bytes(-size % 4)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def unix_entry(inode: int, kind: int, state: int, *attributes: bytes) -> bytes:
    head = struct.pack("=BBBBIII", 1, kind, state, 0, inode, 0, 0)
    return message(head + b"".join(attributes))


def test_unix_sockets() -> None:
    answer = (
        unix_entry(7, 1, 10, attribute(0, b"/run/x\0"), attribute(1, struct.pack("=II", 99, 5)),
                   attribute(3, struct.pack("=II", 11, 12)),
                   attribute(4, struct.pack("=II", 2, 64)))
        + unix_entry(8, 1, 1, attribute(2, struct.pack("=I", 9)), attribute(6, b"\2"))
        + DONE
    )  # fmt: skip
    payloads = netlink.unix_sockets(answer)
    found = {inode: netlink.unix_socket(payload) for inode, payload in payloads.items()}
    assert found[7] == netlink.UnixSocket(
        kind=1, state=10, inode=7, name=b"/run/x\0", vfs=(99, 5), pending=(11, 12),
        receive_queue=2, send_queue=64,
    )  # fmt: skip
    assert (found[8].peer, found[8].shutdown) == (9, 2)
    assert found[7].peer is None


def test_inet_sockets() -> None:
    head = struct.pack("=BBBB", 2, 1, 0, 0)
    identity = struct.pack(">HH", 80, 4711) + b"\x7f\0\0\1".ljust(16, b"\0")
    identity += b"\x0a\0\0\2".ljust(16, b"\0") + struct.pack("=III", 0, 0, 0)
    counts = struct.pack("=IIIII", 0, 5, 6, 1000, 4242)
    (found,) = netlink.inet_sockets(message(head + identity + counts) + DONE)
    assert found == netlink.InetSocket(
        family=2, state=1, inode=4242, source=b"\x7f\0\0\1", source_port=80,
        peer=b"\x0a\0\0\2", peer_port=4711, receive_queue=5, send_queue=6,
    )  # fmt: skip


def test_error_is_raised() -> None:
    answer = HEADER.pack(36, netlink.NLMSG_ERROR, 0, 1, 0) + struct.pack("=i", -1) + bytes(16)
    with pytest.raises(KernelError) as caught:
        list(netlink.messages(answer))
    assert caught.value.errno == 1


@pytest.mark.parametrize("size", [0, 15, 4000])
def test_cut_short(size: int) -> None:
    with pytest.raises(BadImage):
        list(netlink.messages(HEADER.pack(size, 20, 2, 1, 0) + bytes(4)))


def test_a_request_is_framed() -> None:
    asked = netlink.unix_diag_request()
    assert struct.unpack_from("=IHH", asked) == (len(asked), 20, 0x301)
