# SPDX-License-Identifier: Apache-2.0
"""The loop that fills memory of running tasks.

What they wait for comes first, then what was waited for after an earlier restore of the same
images, then all the rest.
"""

import errno
import os
import select
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torpor.engine.errors import KernelError
from torpor.engine.lazy import uffd
from torpor.engine.lazy.missing import Missing, Piece
from torpor.engine.lazy.sources import Pages
from torpor.engine.lazy.uffd import Event, Message

PAGE = uffd.PAGE
AHEAD_BYTES = 64 << 10
"""How much comes with a page that is waited for: at once where memory is read in order, otherwise
when nobody waits."""
MORE_MS = 1
"""Who has waited for a page soon waits for another one, which is not to wait for a whole chunk."""
FORK_FD_MASK = 0xFFFFFFFF


@dataclass(slots=True)
class Space:
    """One address space.

    ``faults`` are addresses that were waited for; ``order`` those to be filled first, the last of
    them before the others.
    """

    fd: int
    missing: Missing
    source: Pages
    last: int = 0
    """Where it was filled last."""
    order: list[int] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)
    """Where more is to come behind a page that was waited for."""


class Arrivals(Protocol):
    """Address spaces that come one by one.

    Until the last has come only what is waited for is copied: areas may not be registered yet.
    """

    def fileno(self) -> int:
        """A descriptor that can be read when there is something."""

    def next(self) -> Space | None:
        """The next one; None: there are no more.

        Raises: Error when whoever had more is gone.
        """


def serve(spaces: Sequence[Space], arrivals: Arrivals | None = None) -> None:
    """Until all is there, or nobody is left who could want it.

    Raises:
        Error: a page could not be had; what waits for it goes on waiting.
    """
    _Loop(list(spaces), arrivals).run()


class _Loop:
    def __init__(self, spaces: list[Space], arrivals: Arrivals | None) -> None:
        self._spaces: dict[int, Space] = {}
        self._arrivals = arrivals
        self._poll = select.poll()
        if arrivals is not None:
            self._poll.register(arrivals.fileno(), select.POLLIN)
        for space in spaces:
            self._add(space)

    def run(self) -> None:
        while (unfilled := self._unfilled()) or self._arrivals is not None:
            self._hear(wait=not unfilled or self._arrivals is not None)
            for space in self._unfilled() if self._arrivals is None else ():
                self._fill_some(space)
        for space in list(self._spaces.values()):
            self._drop(space)

    def _unfilled(self) -> list[Space]:
        """One that is filled waits for the others: new memory of its areas is asked for here."""
        return [space for space in self._spaces.values() if space.missing.pieces]

    def _hear(self, *, wait: bool) -> None:
        """Everything that has come, and what comes at once when that is there."""
        timeout = None if wait else 0
        while ready := [fd for fd, what in self._poll.poll(timeout) if what & select.POLLIN]:
            timeout = 0
            for fd in ready:
                if fd in self._spaces:
                    if self._hear_of(self._spaces[fd]):
                        timeout = MORE_MS
                elif self._arrivals is not None and fd == self._arrivals.fileno():
                    self._let_in(self._arrivals)

    def _let_in(self, arrivals: Arrivals) -> None:
        space = arrivals.next()
        if space is not None:
            self._add(space)
        else:
            self._poll.unregister(arrivals.fileno())
            self._arrivals = None

    def _add(self, space: Space) -> None:
        self._spaces[space.fd] = space
        self._poll.register(space.fd, select.POLLIN)

    def _hear_of(self, space: Space) -> bool:
        """Whether a page was waited for."""
        faults = []
        for message in uffd.messages(space.fd):
            if message.event == Event.PAGEFAULT:
                faults.append(message.values[1] & -PAGE)
            else:
                self._change(space, message)
        for address in faults:
            self._answer(space, address)
        return bool(faults)

    def _change(self, space: Space, message: Message) -> None:
        first, second, third = message.values
        if message.event == Event.FORK:
            child = Space(fd=first & FORK_FD_MASK, missing=space.missing.copy(),
                          source=space.source, last=space.last)  # fmt: skip
            os.set_blocking(child.fd, False)
            self._add(child)
        elif message.event == Event.REMAP:
            space.missing.move(first, second, third)
        else:
            space.missing.take(first, second)

    def _answer(self, space: Space, address: int) -> None:
        """The page that is waited for, and some behind it."""
        space.last = address
        piece = space.missing.at(address)
        if piece is None:
            uffd.zero(space.fd, address)
            return
        in_order = bool(space.faults) and 0 < address - space.faults[-1] <= AHEAD_BYTES
        space.faults.append(address)
        if in_order and self._arrivals is None:
            self._copy_ahead(space, piece)
        else:
            self._copy(space, address, PAGE, piece[2])
            space.ahead.append(address + PAGE)

    def _copy_ahead(self, space: Space, piece: Piece) -> None:
        start, end, offset = piece
        self._copy(space, start, min(end - start, AHEAD_BYTES), offset)

    def _fill_some(self, space: Space) -> None:
        for soon in (space.ahead, space.order):
            while soon:
                known = space.missing.at(soon.pop())
                if known is not None:
                    self._copy_ahead(space, known)
                    return
        piece = space.missing.next(space.last)
        if piece is not None:
            start, end, offset = piece
            size = min(end - start, space.source.chunk_bytes)
            space.last = start + self._copy(space, start, size, offset)

    def _copy(self, space: Space, start: int, size: int, offset: int) -> int:
        """Copy as far as it goes; bytes that are there now."""
        done, failure = space.source.copy(space.fd, start, offset, size)
        space.missing.take(start, start + done)
        if failure == errno.ESRCH:
            self._drop(space)
        elif failure == errno.ENOENT:  # unmapped, or not mapped in a child
            space.missing.take(start + done, start + done + PAGE)
            uffd.wake(space.fd, start + done)
        elif failure and failure != errno.EAGAIN:
            raise KernelError(
                "a page could not be filled",
                errno=failure,
                subject=f"{start + done:x}",
                remedy="leave the images as they are (ENODATA), or raise the memory limit (ENOMEM)",
            )
        elif failure:
            uffd.wake(space.fd, start + done)  # it comes back as a fault, behind the event
        return done

    def _drop(self, space: Space) -> None:
        if self._spaces.pop(space.fd, None) is not None:
            self._poll.unregister(space.fd)
            os.close(space.fd)
