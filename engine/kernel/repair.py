# SPDX-License-Identifier: Apache-2.0
"""TCP_REPAIR on sockets of stopped tasks: look, and leave no trace.

Facts (tcp(7); net/ipv4/tcp.c, do_tcp_setsockopt, tcp_peek_sndq, v6.18):
- Repair mode belongs to the socket, which is the task's too. A socket that stays in it sends
  nothing any more; one that is closed in it is gone without FIN or RST.
- Switching it on needs CAP_NET_ADMIN over the network namespace and sets SO_REUSEADDR to
  "force"; switching it off sets SO_REUSEADDR to 0: it has to be set back.
- Only in it can be read: the sequence numbers, the send queue, the MSS that the peer told, the
  window's state. The receive queue can be peeked at in it as well.
- TCP_REPAIR_OFF_NO_WP (-1) switches it off without sending a window probe.

The engine may be killed while a socket is in repair mode. So each socket is handed to a guard
process first (`repair_guard.py`), which takes it out of that mode when our end of a socket pair
closes. It is started when the first connection is looked at.
"""

import errno
import os
import socket
import struct
import sys
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.engine.errors import Denied, KernelError
from torpor.engine.kind import TcpRepair

if TYPE_CHECKING:
    import subprocess

TCP_MAXSEG, TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 2, 19, 20, 21
TCP_TIMESTAMP, TCP_REPAIR_WINDOW = 24, 29
NO_QUEUE, RECEIVE_QUEUE, SEND_QUEUE = 0, 1, 2
REPAIR_ON, OFF_WITHOUT_PROBE = 1, -1
SIOCINQ, SIOCOUTQ, SIOCOUTQNSD = 0x541B, 0x5411, 0x894B
WINDOW = struct.Struct("<5I")
SCRIPT = Path(__file__).with_name("repair_guard.py")
ROOM = 4 << 20
"""Asked for, so that nobody waits for the guard to have started."""
GUARD_ENTRY = struct.Struct("<i")


class Guard:
    """The process that takes sockets out of repair mode when we die."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket | None = None

    def watch(self, fd: int, reuse: int) -> None:
        """Hand it a socket, and the SO_REUSEADDR that it is to have."""
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        socket.send_fds(self._pipe, [GUARD_ENTRY.pack(reuse)], [fd])

    def end(self) -> None:
        """Send it away; what it holds is closed as it is."""
        if self._pipe is None or self._process is None:
            return
        with suppress(OSError):
            self._pipe.send(b"done")
        self._pipe.close()
        self._process.wait()
        self._pipe = self._process = None

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            import subprocess  # slow to import, not always needed

            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SCRIPT), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env={},
            )
        self._pipe = ours


def read(fd: int, guard: Guard, subject: str, *, connected: bool) -> TcpRepair | None:
    """What only repair mode tells of a socket; None without the right to it.

    ``connected`` is false for one that has only sent its SYN.
    """
    with socket.socket(fileno=os.dup(fd)) as ours:
        reuse = ours.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        guard.watch(fd, reuse)
        try:
            if not _switch_on(ours):
                return None
            try:
                return _read(ours, connected=connected)
            finally:
                _switch_off(ours, reuse)
        except OSError as error:
            raise KernelError(
                "reading a connection by TCP_REPAIR failed",
                errno=error.errno or 0,
                subject=subject,
            ) from error


def keep_silent(fd: int, guard: Guard, subject: str) -> None:
    """Have the last close of a socket send nothing: its holders are killed next."""
    with socket.socket(fileno=os.dup(fd)) as ours:
        guard.watch(fd, ours.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
        if not _switch_on(ours):
            raise Denied("may not use TCP_REPAIR", subject=subject, remedy="run with CAP_NET_ADMIN")


def _switch_on(ours: socket.socket) -> bool:
    try:
        ours.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_ON)
    except OSError as error:
        if error.errno == errno.EPERM:
            return False
        raise
    return True


def _switch_off(ours: socket.socket, reuse: int) -> None:
    ours.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, OFF_WITHOUT_PROBE)
    if reuse:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


def _read(ours: socket.socket, *, connected: bool) -> TcpRepair:
    tcp = socket.IPPROTO_TCP
    received = sent = b""
    window: tuple[int, ...] = ()
    ours.setsockopt(tcp, TCP_REPAIR_QUEUE, SEND_QUEUE)
    out_sequence = _u32(ours, TCP_QUEUE_SEQ)
    if connected:
        sent = _peek(ours, SIOCOUTQ)
    ours.setsockopt(tcp, TCP_REPAIR_QUEUE, RECEIVE_QUEUE)
    in_sequence = _u32(ours, TCP_QUEUE_SEQ)
    if connected:
        received = _peek(ours, SIOCINQ)
        window = WINDOW.unpack(ours.getsockopt(tcp, TCP_REPAIR_WINDOW, WINDOW.size))
    ours.setsockopt(tcp, TCP_REPAIR_QUEUE, NO_QUEUE)
    return TcpRepair(
        received=received,
        sent=sent,
        in_sequence=in_sequence,
        out_sequence=out_sequence,
        unsent=_count(ours, SIOCOUTQNSD) if connected else 0,
        mss=_u32(ours, TCP_MAXSEG),
        timestamp=_u32(ours, TCP_TIMESTAMP),
        window=window,
    )


def _peek(ours: socket.socket, how_many: int) -> bytes:
    size = _count(ours, how_many)
    if size <= 0:
        return b""
    try:
        return ours.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def _count(ours: socket.socket, request: int) -> int:
    return int(struct.unpack("<i", ioctl(ours.fileno(), request, bytes(4)))[0])


def _u32(ours: socket.socket, option: int) -> int:
    return ours.getsockopt(socket.IPPROTO_TCP, option) & 0xFFFFFFFF
