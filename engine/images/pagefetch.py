# SPDX-License-Identifier: Apache-2.0
"""The page server's protocol the other way: a lazy restore asks for pages when it wants them.

Facts (criu 4.2.1, its lazy-pages with a server of ours that was made by trial): a request is that
of `pageserver`: GET (7), number of pages, address, and the pid as it is, not shifted. The answer
is the head of a run (6, with PRESENT) for the same pages, and their bytes. CLOSE (0x1023) ends it
and is answered by 32 bits of status; criu sends it when it has failed as well, and its dump takes a
connection that just ends for a success. Its own server cannot answer on Linux 6.18 (splice: EBADF).
 Here a server has done its work when CLOSE has come and something was asked for before, so our
client, when it fails, only hangs up.
"""

import errno
import socket
from dataclasses import dataclass
from typing import Protocol

from torpor.engine.errors import BadImage, KernelError
from torpor.engine.images.failures import translated
from torpor.engine.images.pages import PAGE_BYTES, PageFlags
from torpor.engine.images.pageserver import ADD, CLOSE, DONE, REMEDY, REQUEST, Connection, receive

GET = 7
MOST_PAGES = 1 << 14
"""Of one request: 64 MiB."""
IDLE_S, INTERVAL_S, PROBES = 10, 5, 4
PATIENCE_S = 60.0


class Fetcher:
    """The side that wants pages."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, pid: int, address: int, count: int) -> bytes:
        """Pages of a task.

        Raises: KernelError when the server does not answer, BadImage when it makes no sense.
        """
        size = count * PAGE_BYTES
        try:
            with translated("send to", "the page server"):
                self._connection.sendall(REQUEST.pack(GET, 0, 0, count, address, pid))
            command, _, _, got, at, _ = REQUEST.unpack(receive(self._connection, REQUEST.size))
            if (command, got, at) != (ADD, count, address):
                raise BadImage("an answer that makes no sense", subject="page server",
                               remedy=REMEDY)  # fmt: skip
            return receive(self._connection, size)
        except EOFError as error:
            raise _gone("the page server has gone before all pages were there") from error

    def end(self) -> None:
        """Tell that nothing more is wanted, and have it confirmed.

        Raises: KernelError.
        """
        with translated("send to", "the page server"):
            self._connection.sendall(REQUEST.pack(CLOSE, 0, 0, 0, 0, 0))
        try:
            receive(self._connection, len(DONE))
        except EOFError as error:
            raise _gone("the page server did not confirm the end") from error


class Pool(Protocol):
    """What a server has."""

    @property
    def must_be_wanted(self) -> bool:
        """Whether somebody who wants nothing of it has given up."""

    def read(self, pid: int, address: int, size: int) -> bytes:
        """Pages of a task.

        Raises: BadImage when they are not there.
        """


@dataclass(slots=True)
class Served:
    """What a server has sent."""

    requests: int = 0
    size_bytes: int = 0


def answer(connection: Connection, pool: Pool) -> Served:
    """Answer requests until the other side says that it has all.

    Raises: BadImage for a request that makes no sense; KernelError when the other side is gone.
    """
    served = Served()
    while True:
        try:
            command, _, _, count, address, pid = REQUEST.unpack(receive(connection, REQUEST.size))
        except EOFError as error:
            raise _gone("the one who wants the pages has gone before it had all") from error
        if command == CLOSE:
            if pool.must_be_wanted and not served.requests:
                raise _gone("the one who wants the pages gave up before it had any")
            with translated("send to", "the other side"):
                connection.sendall(DONE)
            return served
        if command != GET or not 0 < count <= MOST_PAGES or address % PAGE_BYTES:
            raise BadImage("a request that makes no sense", subject="page server", remedy=REMEDY)
        data = pool.read(pid, address, count * PAGE_BYTES)
        with translated("send to", "the other side"):
            flags = int(PageFlags.PRESENT)
            connection.sendall(REQUEST.pack(ADD, flags, 0, count, address, pid))
            connection.sendall(data)
        served.requests += 1
        served.size_bytes += len(data)


def notice_death(connection: socket.socket, *, patience_s: float | None = None) -> None:
    """Have a connection fail when the other machine is gone, or says nothing for so long."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, IDLE_S),
            (socket.TCP_KEEPINTVL, INTERVAL_S),
            (socket.TCP_KEEPCNT, PROBES),
            (socket.TCP_USER_TIMEOUT, (IDLE_S + INTERVAL_S * PROBES) * 1000),
            (socket.TCP_NODELAY, 1),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.settimeout(patience_s)


def _gone(what: str) -> KernelError:
    return KernelError(what, errno=errno.ECONNRESET, remedy=REMEDY)
