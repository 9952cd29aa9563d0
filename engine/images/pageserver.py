# SPDX-License-Identifier: Apache-2.0
"""The page server's protocol: a dump sends its pages to where they will be restored.

Facts (criu 4.2.1, seen on the wire between two of them; little-endian): a request is 32 bytes:
command (low half) and flags of the pagemap (high half) in 32 bits, 32 bits of nothing, then 64 bits
each of the number of pages, the address, and whose they are: a pid or a shared memory's number,
shifted by 8, and 1 or 2 for which of the two. OPEN (4) begins a pagemap and is answered by one
byte, 1 when the server has a parent for it. ADD (6) is a run of pages; with PRESENT their bytes
follow. CLOSE (0x1023) is answered by 32 bits of status, 0 for good, and ends it. Pages files have
numbers from 65537 on.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from torpor.engine.errors import BadImage, KernelError, Timeout
from torpor.engine.images.failures import translated
from torpor.engine.images.format import Buffer, Writer
from torpor.engine.images.kinds import kind_of
from torpor.engine.images.pages import MAX_COMPAT, PAGE_BYTES, PageFlags, PageRun
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.writing import PARENT

OPEN, ADD, CLOSE = 4, 6, 0x1023
REQUEST = struct.Struct("<HHIQQQ")
OWNERS: Mapping[str, int] = {"pagemap-": 1, "pagemap-shmem-": 2}
FIRST_FILE = 0x10001
MOST_PAGES = 1 << 32
CHUNK = 1 << 20
DONE = struct.pack("<i", 0)
REMEDY = "see the log of the other side"


class Connection(Protocol):
    """What is needed of a socket, plain or with TLS."""

    def sendall(self, data: Buffer, /) -> None:
        """Send all."""

    def recv(self, size: int, /) -> bytes:
        """Receive some."""


def receive(connection: Connection, size: int) -> bytes:
    """That many bytes.

    Raises: EOFError when the other side has closed; Timeout when it says nothing.
    """
    data = bytearray()
    while len(data) < size:
        try:
            with translated("receive from", "the other side"):
                piece = connection.recv(size - len(data))
        except KernelError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise Timeout("the other side does not answer", remedy=REMEDY) from error
            raise
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


class Client:
    """The dumping side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, name: str) -> bool:
        """Begin a pagemap by the name of its image; whether the server has a parent for it."""
        self._owner = _owner(name)
        self._send(REQUEST.pack(OPEN, 0, 0, 0, 0, self._owner))
        return receive(self._connection, 1) != b"\0"

    def add(self, run: PageRun, data: Iterable[Buffer] = ()) -> None:
        """Send a run, and its bytes, piece by piece, if it has any of its own."""
        self._send(REQUEST.pack(ADD, int(run.flags), 0, run.page_count, run.vaddr, self._owner))
        if PageFlags.PRESENT in run.flags:
            for piece in data:
                self._send(piece)

    def end(self) -> None:
        """Wait until the server has everything.

        Raises: KernelError when it has not.
        """
        self._send(REQUEST.pack(CLOSE, 0, 0, 0, 0, 0))
        (status,) = struct.unpack("<i", receive(self._connection, len(DONE)))
        if status:
            raise KernelError("the page server failed", errno=abs(status), remedy=REMEDY)

    def _send(self, data: Buffer) -> None:
        with translated("send to", "the page server"):
            self._connection.sendall(data)


class Server:
    """The side that keeps the pages: writes pagemaps and pages files into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = ExitStack()
        self._count = 0
        self._pagemap: Writer | None = None
        self._pages = -1
        self.pages_written = 0

    def serve(self, connection: Connection) -> None:
        """Take everything that a client sends, until it is done.

        Raises: BadImage when it sends nonsense.
        """
        with self._files:
            for command, flags, count, address, owner in _requests(connection):
                if command == OPEN:
                    connection.sendall(b"\1" if self._begin(_name(owner)) else b"\0")
                elif command == ADD:
                    self._add(connection, flags, count, address)
                elif command == CLOSE:
                    self._end()
                    connection.sendall(DONE)
                    return
                else:
                    raise BadImage(f"unknown command {command:#x}", subject="page server",
                                   remedy=REMEDY)  # fmt: skip
        raise BadImage("the client has gone before the end", subject="page server", remedy=REMEDY)

    def _begin(self, name: str) -> bool:
        self._end()
        number = FIRST_FILE + self._count
        self._count += 1
        with translated("create", name):
            stream = self._files.enter_context((self._directory / f"{name}.img").open("wb"))
            kind = kind_of(name)
            assert kind is not None
            self._pagemap = Writer(stream, name, kind)
            self._pagemap.add(pb.pagemap_head(pages_id=number))
            pages = self._directory / f"pages-{number}.img"
            self._pages = os.open(
                pages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            self._files.callback(os.close, self._pages)
        return (self._directory / PARENT / f"{name}.img").exists()

    def _add(self, connection: Connection, flags: int, count: int, address: int) -> None:
        if self._pagemap is None or not 0 < count < MOST_PAGES or address % PAGE_BYTES:
            raise BadImage("a run that makes no sense", subject="page server", remedy=REMEDY)
        entry = pb.pagemap_entry(vaddr=address, nr_pages=count, flags=flags,
                                 compat_nr_pages=min(count, MAX_COMPAT))  # fmt: skip
        self._pagemap.add(entry)
        left = count * PAGE_BYTES if flags & PageFlags.PRESENT else 0
        while left:
            data = connection.recv(min(left, CHUNK))
            if not data:
                raise BadImage("the client has gone inside a run", subject="page server",
                               remedy=REMEDY)  # fmt: skip
            with translated("write", "pages"):
                written = 0
                while written < len(data):
                    written += os.write(self._pages, data[written:])
            left -= len(data)
            self.pages_written += len(data) // PAGE_BYTES

    def _end(self) -> None:
        if self._pagemap is not None:
            self._pagemap.finish()
        self._pagemap = None
        self._files.close()


def _requests(connection: Connection) -> Iterator[tuple[int, int, int, int, int]]:
    with suppress(EOFError):
        while True:
            command, flags, _, count, address, owner = REQUEST.unpack(
                receive(connection, REQUEST.size)
            )
            yield command, flags, count, address, owner


def _owner(name: str) -> int:
    stem, _, number = name.rpartition("-")
    return int(number) << 8 | OWNERS[f"{stem}-"]


def _name(owner: int) -> str:
    stems = [stem for stem, kind in OWNERS.items() if kind == owner & 0xFF]
    if not stems or owner >> 8 >= 1 << 32:
        raise BadImage(f"unknown owner {owner:#x} of pages", subject="page server", remedy=REMEDY)
    return f"{stems[0]}{owner >> 8}"
