# SPDX-License-Identifier: Apache-2.0
"""Which pages of a task may be waited for, for the process that fills for another's restore.

What exactly was left out the restore does not say; asking for more does no harm (see
`torpor.engine.lazy.handing`). CRIU marks what it may leave out as LAZY; where nothing is marked it
is all private anonymous memory.
"""

from collections.abc import Iterator

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
    """Pages that a server has, whether the images have them as well or not."""
    runs = [one.run for one in contents.of(handed.pid).runs]
    marked = [(run.vaddr, run.end, run.vaddr) for run in runs if PageFlags.LAZY in run.flags]
    found = marked or [(at, end, at) for at, end, _ in _stored(contents, handed.pid)]
    return Space(fd=handed.fd, missing=Missing.of(found),
                 source=RemotePages(fetcher, handed.pid))  # fmt: skip


def _stored(contents: Contents, pid: int) -> Iterator[Piece]:
    for memory in contents.images.messages(f"mm-{pid}", pb.mm_entry):
        for area in memory.vmas:
            if area.flags & PRIVATE and area.flags & ANONYMOUS:
                for start, size, offset in contents.of(pid).between(area.start, area.end):
                    yield start, start + size, offset
