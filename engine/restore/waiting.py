# SPDX-License-Identifier: Apache-2.0
"""Which pages of a task may be waited for, for the process that fills for another's restore.

What exactly was left out the restore does not say; asking for more does no harm (see
`torpor.engine.lazy.handing`). CRIU marks what it may leave out as LAZY; where nothing is marked it
is all private anonymous memory.
"""

import os
from collections.abc import Iterator

from torpor.engine.errors import BadImage
from torpor.engine.images.pagefetch import Fetcher
from torpor.engine.images.pages import PageFlags
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.lazy.handing import Handed
from torpor.engine.lazy.missing import Missing, Piece
from torpor.engine.lazy.serve import Space
from torpor.engine.lazy.sources import FilePages, RemotePages
from torpor.engine.restore.contents import Contents

PRIVATE, ANONYMOUS = 2, 0x20


def in_files(contents: Contents, handed: Handed) -> Space:
    """Pages that are in the images."""
    missing = Missing.of(_stored(contents, handed.pid))
    return Space(fd=handed.fd, missing=missing, source=FilePages(contents.of(handed.pid).fd))


def at_server(contents: Contents, fetcher: Fetcher, handed: Handed) -> Space:
    """Pages that a server has: those that are marked, whether the images have them as well or not.

    Where none is marked the images have all.
    """
    runs = [one.run for one in contents.of(handed.pid).runs]
    marked = [(run.vaddr, run.end, run.vaddr) for run in runs if PageFlags.LAZY in run.flags]
    if not marked:
        return in_files(contents, handed)
    return Space(fd=handed.fd, missing=Missing.of(marked),
                 source=RemotePages(fetcher, handed.pid))  # fmt: skip


class Stored:
    """All pages of images, for a server (see `pagefetch.Pool`)."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    must_be_wanted = False

    def read(self, pid: int, address: int, size: int) -> bytes:
        """Pages of a task.

        Raises: BadImage when they are not there.
        """
        pages = self._contents.of(pid)
        found = b"".join(
            os.pread(pages.fd, length, offset)
            for _, length, offset in pages.between(address, address + size)
        )
        if len(found) != size:
            raise BadImage("pages are asked for that the images have not", subject=f"task {pid}",
                           cause=f"{address:x}, {size} bytes")  # fmt: skip
        return found


def _stored(contents: Contents, pid: int) -> Iterator[Piece]:
    for memory in contents.images.messages(f"mm-{pid}", pb.mm_entry):
        for area in memory.vmas:
            if area.flags & PRIVATE and area.flags & ANONYMOUS:
                for start, size, offset in contents.of(pid).between(area.start, area.end):
                    yield start, start + size, offset
