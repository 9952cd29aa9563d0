# SPDX-License-Identifier: Apache-2.0
"""How a restore hands userfaultfds to the process that fills (lazy-pages.socket).

Facts (criu 4.2.1, seen on the wire): for each task its pid as the images have it, 32 bits
little-endian, then one byte of zero that carries the userfaultfd (SCM_RIGHTS), with its handshake
done; at the end of the restore `FTSR`. Nothing comes back. Areas are registered, and pages asked
for, while the restore still goes on; only at its end are all areas registered and where they stay.
CRIU's process fills what pagemaps mark as LAZY; what it does not know of is left to be zeros. Ours
fills all, and is known by its name, because nothing else tells.
"""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torpor.engine.errors import BadImage
from torpor.engine.images.failures import translated

END = b"FTSR"
NAME = "torpor-lazy"
CREDENTIALS = struct.Struct("iII")
PID = struct.Struct("<i")
WHOM = "the process that fills memory"


def announce(name: str = NAME) -> None:
    """By our name: we fill whatever is handed over, marked or not."""
    Path("/proc/self/comm").write_text(name, encoding="ascii")


def fills_all(connection: socket.socket) -> bool:
    """Whether the other side has announced so."""
    with suppress(OSError):
        return Path(f"/proc/{peer(connection)}/comm").read_bytes().strip() == NAME.encode()
    return False


def peer(connection: socket.socket) -> int:
    """Who has connected, or listens; 0 when it cannot be seen from here."""
    size = CREDENTIALS.size
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(CREDENTIALS.unpack(credentials)[0])


class Handed(NamedTuple):
    """The memory of one task."""

    pid: int
    """As the images have it."""
    fd: int


def hand(connection: socket.socket, pid: int, fd: int) -> None:
    """Hand over the memory of one task; our descriptor stays open."""
    with translated("hand memory to", WHOM):
        connection.sendall(PID.pack(pid))
        socket.send_fds(connection, [b"\0"], [fd])


def end(connection: socket.socket) -> None:
    """There are no more."""
    with translated("tell", WHOM):
        connection.sendall(END)


def receive(connection: socket.socket) -> Handed | None:
    """The next one; None at the end.

    Raises: BadImage when the other side has gone, or speaks of something else.
    """
    with translated("receive from", "the restore"):
        head = connection.recv(len(END), socket.MSG_WAITALL)
        if head == END:
            return None
        mark, fds = b"", list[int]()
        if len(head) == PID.size:
            mark, fds, _, _ = socket.recv_fds(connection, 1, 1)
    if mark == b"\0" and len(fds) == 1:
        os.set_inheritable(fds[0], False)
        return Handed(PID.unpack(head)[0], fds[0])
    for fd in fds:
        os.close(fd)
    raise BadImage("the restore did not come to its end", subject="lazy-pages.socket",
                   remedy="see its log")  # fmt: skip
