# SPDX-License-Identifier: Apache-2.0
"""Sending a queued message of a unix socket again: bytes, descriptors, who has sent it."""

import struct
from dataclasses import replace

from torpor.engine.kernel.abi import MSG_DONTWAIT, MSG_NOSIGNAL, SOL_SOCKET
from torpor.engine.kind import Message
from torpor.engine.program.ops import Arg, Data, Expect, Op
from torpor.engine.sockets.unix_creds import Impostor
from torpor.engine.sockets.unix_state import SCM_RIGHTS

PIECE_BYTES = 65536
SCM_CREDENTIALS = 2
CMSG_HEADER = 16


def sent(
    impostor: Impostor, sender: Arg, to: Data | None, message: Message, where: str, *, stream: bool
) -> list[Op]:
    """One message, with what it carries; of a stream in pieces."""
    size, context = len(message.data), impostor.context
    if size > PIECE_BYTES and stream and not message.rights:
        pieces = [message.data[at : at + PIECE_BYTES] for at in range(0, size, PIECE_BYTES)]
        return [
            op
            for piece in pieces
            for op in sent(impostor, sender, to, replace(message, data=piece), where, stream=True)
        ]
    control = b""
    if message.rights:
        fds = [context.fd(one) for one in message.rights]
        control += _control(SCM_RIGHTS, struct.pack(f"<{len(fds)}i", *fds))
    if message.creds is not None:
        pid, uid, gid = message.creds
        creds = struct.pack("<iII", pid or context.root, uid, gid)
        control += _control(SCM_CREDENTIALS, creds)
    made = _message(sender, to, message.data, control, where)
    return impostor.by(message.creds[0] if message.creds else 0, [made])


def _message(sender: Arg, to: Data | None, content: bytes, control: bytes, where: str) -> Op:
    """sendto(2) of bytes only, sendmsg(2) with control messages."""
    size, flags = len(content), MSG_DONTWAIT | MSG_NOSIGNAL
    data = Data(content or b"\0", 8, (), f"<{size} bytes>")
    if not control:
        at: tuple[Arg, ...] = (to, len(to.content)) if to else (0, 0)
        return Op(
            call="sendto", args=(sender, data, size, flags, *at), subject=where,
            note="queued again", expect=Expect.EQUAL, want=size,
        )  # fmt: skip
    vector = Data(struct.pack("<QQ", 0, size), 8, ((0, data),), "iovec")
    raw = struct.pack("<QIxxxxQQQQixxxx", 0, len(to.content) if to else 0, 0, 1, 0, len(control), 0)
    pointers = [(16, vector), (32, Data(control, 8, (), f"<{len(control)} bytes of control>"))]
    if to:
        pointers.append((0, to))
    header = Data(raw, 8, tuple(pointers), f"message of {size} bytes")
    return Op(
        call="sendmsg", args=(sender, header, flags), subject=where,
        note="queued again with what it carries", expect=Expect.EQUAL, want=size,
    )  # fmt: skip


def _control(kind: int, payload: bytes) -> bytes:
    """Struct cmsghdr and what it has."""
    head = struct.pack("<Qii", CMSG_HEADER + len(payload), SOL_SOCKET, kind)
    return head + payload + bytes(-len(payload) % 8)
