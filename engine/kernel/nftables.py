# SPDX-License-Identifier: Apache-2.0
"""A table of nftables that drops the packets of given TCP connections: the network lock.

Facts:
- A table with NFT_TABLE_F_OWNER (v5.12) belongs to the netlink socket that made it, and goes
  away with it: so a lock ends with the engine, however it ends.
- All messages between BATCH_BEGIN and BATCH_END come into force at once, or none does.
- CRIU 4.2 leaves `inet CRIU-ID` behind after its dump (seen with `nft list ruleset`): sets conns4
  and conns6 of source address . port . destination address . port, and in chains `input` and
  `output` (filter, priority 0) the rules: mark 0xc114 is accepted, what is in a set is dropped.
  ID is the start of the inventory's dump_criu_run_id: `inet CRIU-ID` has 31 characters.

Source: include/uapi/linux/netfilter/nf_tables.h (v6.18).
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from torpor.engine.errors import KernelError

NETLINK_NETFILTER = 12
MARK = 0xC114
"""Packets with this SO_MARK pass (CRIU's number)."""
LONGEST_NAME = len("inet CRIU-9c9b1644-46ca-4a38-9f") - len("inet ")

Connection = tuple[bytes, int, bytes, int]
"""Source address (4 or 16 bytes), port, destination address, port."""

_HEADER = struct.Struct("=IHHII")
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLM_F_APPEND = 1, 4, 0x400, 0x800
NLMSG_ERROR = 2
BATCH_BEGIN, BATCH_END = 0x10, 0x11
SUBSYSTEM = 10
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM = 0, 2, 3, 6, 9, 12
INET = 1
OWNER = 2
LOCAL_IN, LOCAL_OUT = 1, 3
DROP, ACCEPT = 0, 1
META_MARK, META_PROTOCOL, META_L4PROTOCOL = 3, 15, 16
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
FIRST_REGISTER = 8
TYPE_IPV4, TYPE_IPV6, TYPE_PORT = 7, 8, 13
AT_ONCE = 400
"""Elements in a message: an attribute holds 64 KiB."""
NESTED = 0x8000


def table_name(run_id: str) -> str:
    """Name of the table that belongs to a dump."""
    return f"CRIU-{run_id}"[:LONGEST_NAME]


def lock(fd: int, table: str, connections: Sequence[Connection], *, owned: bool) -> None:
    """Drop the packets of connections, both ways. Raises KernelError.

    ``owned``: until the netlink socket ``fd`` is closed.
    """
    messages = [_table(table, owned=owned)]
    for name, size in (("conns4", 4), ("conns6", 16)):
        messages.append(_set(table, name, size))
        elements = sorted(_elements(connections, size))
        messages += [
            _add(table, name, elements[at : at + AT_ONCE])
            for at in range(0, len(elements), AT_ONCE)
        ]
    for chain, hook in (("output", LOCAL_OUT), ("input", LOCAL_IN)):
        messages.append(_chain(table, chain, hook))
        messages += [_rule(table, chain, rule) for rule in _rules()]
    _send(fd, messages)


def unlock(table: str, fd: int | None = None) -> bool:
    """Delete the table in the socket's network namespace (ours); False if there is none."""
    with contextlib.ExitStack() as stack:
        if fd is None:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            fd = stack.enter_context(made).fileno()
        try:
            _send(fd, [_message(DELTABLE, _text(1, table))])
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
    return True


def _elements(connections: Iterable[Connection], size: int) -> Iterator[bytes]:
    for source, port, target, target_port in connections:
        if len(source) == size:
            near, far = (
                source + struct.pack(">Hxx", port),
                target + struct.pack(">Hxx", target_port),
            )
            yield near + far
            yield far + near


def _rules() -> Iterator[bytes]:
    yield _load_meta(META_MARK) + _compare(struct.pack("=I", MARK)) + _verdict(ACCEPT)
    for protocol, name, size, offset in ((2, "conns4", 4, 12), (10, "conns6", 16, 8)):
        words = size // 4
        yield (
            _load_meta(META_PROTOCOL)
            + _compare(bytes([protocol]))
            + _load_meta(META_L4PROTOCOL)
            + _compare(bytes([socket.IPPROTO_TCP]))
            + _load(NETWORK_HEADER, offset, size, FIRST_REGISTER)
            + _load(TRANSPORT_HEADER, 0, 2, FIRST_REGISTER + words)
            + _load(NETWORK_HEADER, offset + size, size, FIRST_REGISTER + words + 1)
            + _load(TRANSPORT_HEADER, 2, 2, FIRST_REGISTER + 2 * words + 1)
            + _expression("lookup", _text(1, name) + _be32(2, FIRST_REGISTER))
            + _verdict(DROP)
        )


def _table(name: str, *, owned: bool) -> bytes:
    return _message(NEWTABLE, _text(1, name) + _be32(2, OWNER if owned else 0))


def _set(table: str, name: str, size: int) -> bytes:
    address = TYPE_IPV4 if size == 4 else TYPE_IPV6
    kind = address << 18 | TYPE_PORT << 12 | address << 6 | TYPE_PORT
    fields = _text(1, table) + _text(2, name) + _be32(3, 0) + _be32(4, kind)
    number = _be32(10, size)  # told apart within the batch
    return _message(NEWSET, fields + _be32(5, 2 * size + 8) + number)


def _add(table: str, name: str, elements: Sequence[bytes]) -> bytes:
    listed = b"".join(
        _nested(1, _nested(1, _attribute(1, element)))  # LIST_ELEM, ELEM_KEY, DATA_VALUE
        for element in elements
    )
    return _message(NEWSETELEM, _text(1, table) + _text(2, name) + _nested(3, listed))


def _chain(table: str, name: str, hook: int) -> bytes:
    place = _nested(4, _be32(1, hook) + _be32(2, 0))
    fields = _text(1, table) + _text(3, name) + place + _be32(5, ACCEPT) + _text(7, "filter")
    return _message(NEWCHAIN, fields)


def _rule(table: str, chain: str, expressions: bytes) -> bytes:
    return _message(NEWRULE, _text(1, table) + _text(2, chain) + _nested(4, expressions))


def _load_meta(key: int) -> bytes:
    return _expression("meta", _be32(2, key) + _be32(1, FIRST_REGISTER))


def _load(base: int, offset: int, size: int, register: int) -> bytes:
    fields = _be32(1, register) + _be32(2, base) + _be32(3, offset) + _be32(4, size)
    return _expression("payload", fields)


def _compare(value: bytes) -> bytes:
    fields = _be32(1, FIRST_REGISTER) + _be32(2, 0) + _nested(3, _attribute(1, value))
    return _expression("cmp", fields)


def _verdict(code: int) -> bytes:
    return _expression("immediate", _be32(1, 0) + _nested(2, _nested(2, _be32(1, code))))


def _expression(name: str, fields: bytes) -> bytes:
    return _nested(1, _text(1, name) + _nested(2, fields))


def _attribute(kind: int, payload: bytes) -> bytes:
    size = 4 + len(payload)
    return struct.pack("=HH", size, kind) + payload + bytes(-size % 4)


def _nested(kind: int, payload: bytes) -> bytes:
    return _attribute(kind | NESTED, payload)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _be32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value))


def _message(kind: int, attributes: bytes) -> bytes:
    """Without its header's sequence number, which `_send` gives."""
    flags = NLM_F_REQUEST | NLM_F_ACK
    if kind != DELTABLE:
        flags |= NLM_F_CREATE | NLM_F_APPEND
    body = struct.pack(">BBH", INET, 0, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), SUBSYSTEM << 8 | kind, flags, 0, 0) + body


def _mark(kind: int) -> bytes:
    body = struct.pack(">BBH", 0, 0, SUBSYSTEM)
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST, 0, 0) + body


def _send(fd: int, messages: Sequence[bytes]) -> None:
    """One batch; the first error counts."""
    numbered = [_mark(BATCH_BEGIN), *messages, _mark(BATCH_END)]
    batch = b"".join(
        one[:8] + struct.pack("=I", number) + one[12:] for number, one in enumerate(numbered)
    )
    try:
        with socket.socket(fileno=os.dup(fd)) as ours:
            ours.settimeout(5.0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(batch) + 65536)
            ours.sendto(batch, (0, 0))
            answered = 0
            while answered < len(messages):
                answered += _check(ours.recv(1 << 16))
    except OSError as error:
        raise KernelError("nftables cannot be set", errno=error.errno or 0) from error


def _check(answer: bytes) -> int:
    """How many messages are answered. Raises OSError for one that failed."""
    offset = found = 0
    while offset + _HEADER.size <= len(answer):
        size, kind, _, _, _ = _HEADER.unpack_from(answer, offset)
        if kind == NLMSG_ERROR:
            number = -struct.unpack_from("=i", answer, offset + _HEADER.size)[0]
            if number:
                raise OSError(number, os.strerror(number))
            found += 1
        offset += max(size + 3 & ~3, _HEADER.size)
    return found
