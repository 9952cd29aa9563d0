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

from torpor.engine import native
from torpor.engine.errors import KernelError
from torpor.engine.lazy import uffd
from torpor.engine.lazy.missing import Missing, Piece
from torpor.engine.lazy.uffd import Event, Message

PAGE = uffd.PAGE
AHEAD_BYTES = 64 << 10
"""How much comes with a page that is waited for."""
CHUNK_BYTES = 1 << 20
FORK_FD_MASK = 0xFFFFFFFF


@dataclass(slots=True)
class Space:
    """One address space. ``source`` is the descriptor of the pages file.

    ``faults`` are addresses that were waited for; ``order`` those to be filled first, the last of
    them before the others.
    """

    fd: int
    missing: Missing
    source: int
    last: int = 0
    """Where it was filled last."""
    order: list[int] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)


def serve(spaces: Sequence[Space]) -> None:
    """Until all is there, or nobody is left who could want it.

    Raises:
        KernelError: a page could not be had; what waits for it goes on waiting.
    """
    _Loop(list(spaces)).run()


class _Loop:
    def __init__(self, spaces: list[Space]) -> None:
        self._spaces = {space.fd: space for space in spaces}
        self._poll = select.poll()
        for space in spaces:
            self._poll.register(space.fd, select.POLLIN)

    def run(self) -> None:
        while self._spaces:
            self._hear()
            for space in list(self._spaces.values()):
                self._fill_some(space)

    def _hear(self) -> None:
        """Everything that has come."""
        while ready := [fd for fd, what in self._poll.poll(0) if what & select.POLLIN]:
            for fd in ready:
                if fd in self._spaces:
                    self._hear_of(self._spaces[fd])

    def _hear_of(self, space: Space) -> None:
        faults = []
        for message in uffd.messages(space.fd):
            if message.event == Event.PAGEFAULT:
                faults.append(message.values[1] & -PAGE)
            else:
                self._change(space, message)
        for address in faults:
            self._answer(space, address)

    def _change(self, space: Space, message: Message) -> None:
        first, second, third = message.values
        if message.event == Event.FORK:
            child = Space(fd=first & FORK_FD_MASK, missing=space.missing.copy(),
                          source=space.source, last=space.last)  # fmt: skip
            os.set_blocking(child.fd, False)
            self._spaces[child.fd] = child
            self._poll.register(child.fd, select.POLLIN)
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
        space.faults.append(address)
        self._copy_ahead(space, piece)

    def _copy_ahead(self, space: Space, piece: Piece) -> None:
        start, end, offset = piece
        self._copy(space, start, min(end - start, AHEAD_BYTES), offset)

    def _fill_some(self, space: Space) -> None:
        while space.order:
            known = space.missing.at(space.order.pop())
            if known is not None:
                self._copy_ahead(space, known)
                return
        piece = space.missing.next(space.last)
        if piece is None:
            self._drop(space)
            return
        start, end, offset = piece
        size = min(end - start, CHUNK_BYTES)
        space.last = start + self._copy(space, start, size, offset)

    def _copy(self, space: Space, start: int, size: int, offset: int) -> int:
        """Copy as far as it goes; bytes that are there now."""
        done, failure = native.copy_pages(space.fd, start, space.source, offset, size)
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
