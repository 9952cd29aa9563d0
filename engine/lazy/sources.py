# SPDX-License-Identifier: Apache-2.0
"""Where pages come from that are filled later: a file here, or a server elsewhere."""

from dataclasses import dataclass
from typing import Protocol

from torpor.engine import native
from torpor.engine.images.pagefetch import Fetcher

PAGE = 4096


class Pages(Protocol):
    """Pages of one address space."""

    @property
    def chunk_bytes(self) -> int:
        """How many are best had at once, when nobody waits."""

    def copy(self, uffd: int, target: int, start: int, size: int) -> tuple[int, int]:
        """Copy to ``target`` what is at ``start``: bytes that are there now, and why not all.

        Raises: Error when they cannot be had.
        """


@dataclass(frozen=True, slots=True)
class FilePages:
    """In a file; ``start`` is an offset."""

    fd: int
    chunk_bytes: int = 1 << 20

    def copy(self, uffd: int, target: int, start: int, size: int) -> tuple[int, int]:
        """See `Pages`."""
        return native.copy_pages(uffd, target, self.fd, start, size)


@dataclass(frozen=True, slots=True)
class RemotePages:
    """At a page server; ``start`` is the address that the page has there."""

    fetcher: Fetcher
    pid: int
    chunk_bytes: int = 512 << 10
    """Whoever waits for a page waits for what was asked for before."""

    def copy(self, uffd: int, target: int, start: int, size: int) -> tuple[int, int]:
        """See `Pages`."""
        return native.put_pages(uffd, target, self.fetcher.get(self.pid, start, size // PAGE))
