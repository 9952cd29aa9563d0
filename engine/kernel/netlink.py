# SPDX-License-Identifier: Apache-2.0
"""Netlink: framing, attributes, and the requests of sock_diag.

A request is bytes; `FdView.netlink` carries it to a socket in the right network namespace
and brings every message of the answer back; `messages` takes the answer apart.

Source: netlink(7), sock_diag(7); include/uapi/linux/{netlink,unix_diag,inet_diag}.h (v6.8).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torpor.engine.errors import BadImage, KernelError, Timeout

AF_NETLINK = 16
NETLINK_SOCK_DIAG = 4
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_DUMP_INTR, NLM_F_DUMP = 1, 2, 0x10, 0x300
SOCK_DIAG_BY_FAMILY = 20
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
UDIAG_SHOW_ALL = 0x7F
INET_DIAG_INFO, INET_DIAG_MD5SIG = 2, 18
NLA_TYPE_MASK = 0x3FFF
ALL_STATES = 0xFFFFFFFF
SOCK_DESTROY = 21
NO_INTERFACE_NO_COOKIE = bytes(4) + b"\xff" * 8
DO_AND_TELL = 5
"""NLM_F_REQUEST | NLM_F_ACK."""
ANSWER_ROOM = 1 << 18
TIMEOUT_S = 5.0

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_UNIX_MESSAGE = struct.Struct("=BBBBIII")
_INET_MESSAGE = struct.Struct("=BBBB2s2s16s16sIIIIIIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixSocket:
    """What unix_diag knows of a socket.

    ``peer`` is an inode, 0 when the other end is closed, None when there is none; ``vfs``
    (inode, device) of the file of a bound path.
    """

    kind: int
    state: int
    inode: int
    name: bytes = b""
    vfs: tuple[int, int] | None = None
    peer: int | None = None
    pending: tuple[int, ...] = ()
    receive_queue: int = 0
    send_queue: int = 0
    shutdown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InetSocket:
    """What inet_diag knows of a socket. Addresses raw, ports as numbers."""

    family: int
    state: int
    inode: int
    source: bytes
    source_port: int
    peer: bytes
    peer_port: int
    receive_queue: int = 0
    send_queue: int = 0
    shutdown: int = 0
    is_signed: bool = False
    """Segments have signatures (TCP_MD5SIG); told only with CAP_NET_ADMIN."""


def request(kind: int, payload: bytes, flags: int = NLM_F_REQUEST | NLM_F_DUMP) -> bytes:
    """One request."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, 1, 0) + payload


def unix_diag_request(inode: int | None = None) -> bytes:
    """unix_diag: all sockets with all that it can show."""
    payload = struct.pack(
        "=BBHIIIII", AF_UNIX, 0, 0, ALL_STATES, inode or 0, UDIAG_SHOW_ALL, 0xFFFFFFFF, 0xFFFFFFFF
    )
    return request(SOCK_DIAG_BY_FAMILY, payload)


def inet_diag_request(family: int, protocol: int, *, signed: bool = False) -> bytes:
    """inet_diag: all sockets of a family (AF_INET, AF_INET6) and protocol (TCP 6, UDP 17).

    ``signed``: with what is told of signatures, which is only together with tcp_info.
    """
    asked = 1 << INET_DIAG_INFO - 1 if signed else 0
    payload = struct.pack("=BBBBI", family, protocol, asked, 0, ALL_STATES) + bytes(48)
    return request(SOCK_DIAG_BY_FAMILY, payload)


def inet_destroy_request(one: InetSocket, protocol: int) -> bytes:
    """SOCK_DESTROY of the socket with these ends; the kernel answers with an error, or with 0."""
    head = struct.pack("=BBBBI", one.family, protocol, 0, 0, ALL_STATES)
    ports = struct.pack(">HH", one.source_port, one.peer_port)
    ends = one.source.ljust(16, b"\0") + one.peer.ljust(16, b"\0")
    return request(SOCK_DESTROY, head + ports + ends + NO_INTERFACE_NO_COOKIE, DO_AND_TELL)


def messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of each message but the last one. Raises KernelError for an error."""
    offset = 0
    while offset + _HEADER.size <= len(answer):
        size, kind, _, _, _ = _HEADER.unpack_from(answer, offset)
        if size < _HEADER.size or offset + size > len(answer):
            raise BadImage("a netlink message is cut short", subject=f"offset {offset}")
        payload = answer[offset + _HEADER.size : offset + size]
        if kind == NLMSG_DONE:
            return
        if kind == NLMSG_ERROR:
            number = -struct.unpack_from("=i", payload)[0]
            if number:
                raise KernelError("a netlink request failed", errno=number)
            return
        yield kind, payload
        offset += size + 3 & ~3


def attributes(data: bytes) -> Mapping[int, bytes]:
    """Attributes by type; of two of one type the last."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + size]
        offset += size + 3 & ~3
    return found


def unix_sockets(answer: bytes) -> dict[int, bytes]:
    """What `unix_socket` reads, by inode: there are those of a whole machine, few are asked for."""
    return {_UNIX_MESSAGE.unpack_from(payload)[4]: payload for _, payload in messages(answer)}


def unix_socket(payload: bytes) -> UnixSocket:
    """Attributes: NAME 0, VFS 1, PEER 2, ICONS 3, RQLEN 4, SHUTDOWN 6."""
    _, kind, state, _, inode, _, _ = _UNIX_MESSAGE.unpack_from(payload)
    parts = attributes(payload[_UNIX_MESSAGE.size :])
    vfs = struct.unpack("=II", parts[1]) if 1 in parts else None
    queues = struct.unpack("=II", parts[4]) if 4 in parts else (0, 0)
    return UnixSocket(
        kind=kind,
        state=state,
        inode=inode,
        name=parts.get(0, b""),
        vfs=vfs,
        peer=struct.unpack("=I", parts[2])[0] if 2 in parts else None,
        pending=struct.unpack(f"={len(parts.get(3, b'')) // 4}I", parts.get(3, b"")),
        receive_queue=queues[0],
        send_queue=queues[1],
        shutdown=parts[6][0] if 6 in parts else 0,
    )


def inet_sockets(answer: bytes) -> list[InetSocket]:
    """Attributes: SHUTDOWN 8, MD5SIG 18."""
    found: list[InetSocket] = []
    for _, payload in messages(answer):
        fields = _INET_MESSAGE.unpack_from(payload)
        family, state, _, _, source_port, peer_port, source, peer = fields[:8]
        _, receive_queue, send_queue, _, inode = fields[-5:]
        parts = attributes(payload[_INET_MESSAGE.size :])
        size = 4 if family == AF_INET else 16
        found.append(
            InetSocket(
                family=family,
                state=state,
                inode=inode,
                source=source[:size],
                source_port=int.from_bytes(source_port, "big"),
                peer=peer[:size],
                peer_port=int.from_bytes(peer_port, "big"),
                receive_queue=receive_queue,
                send_queue=send_queue,
                shutdown=parts[8][0] if 8 in parts else 0,
                is_signed=INET_DIAG_MD5SIG in parts,
            )
        )
    return found


def open_socket(protocol: int) -> int:
    """A netlink socket in our own network namespace."""
    try:
        made = socket.socket(AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise KernelError("socket(AF_NETLINK) failed", errno=error.errno or 0) from error
    return made.detach()


def ask(fd: int, message: bytes) -> bytes:
    """Send a request and read until its last message.

    A dump that was disturbed by a change (NLM_F_DUMP_INTR) is asked for again.
    """
    with socket.socket(AF_NETLINK, socket.SOCK_RAW, fileno=os.dup(fd)) as ours:
        ours.settimeout(TIMEOUT_S)
        try:
            for _ in range(10):
                ours.sendto(message, (0, 0))
                answer, disturbed = _receive(ours)
                if not disturbed:
                    return answer
        except TimeoutError as error:
            raise Timeout(f"netlink did not answer within {TIMEOUT_S:g} s") from error
        except OSError as error:
            raise KernelError("a netlink request failed", errno=error.errno or 0) from error
    raise KernelError("a netlink dump was disturbed ten times", errno=errno.EINTR)


def _receive(ours: socket.socket) -> tuple[bytes, bool]:
    answer = bytearray()
    disturbed = False
    while True:
        part = ours.recv(ANSWER_ROOM)
        answer += part
        offset = 0
        while offset + _HEADER.size <= len(part):
            size, kind, flags, _, _ = _HEADER.unpack_from(part, offset)
            disturbed |= bool(flags & NLM_F_DUMP_INTR)
            if kind in (NLMSG_DONE, NLMSG_ERROR) or not flags & NLM_F_MULTI:
                return bytes(answer), disturbed
            offset += max(size + 3 & ~3, _HEADER.size)
