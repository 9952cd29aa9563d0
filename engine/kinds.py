# SPDX-License-Identifier: Apache-2.0
"""The one table of kinds of open file descriptions: a kind is in the engine by its line here.

Order matters where two could match: special ones come before general ones.
"""

from collections.abc import Sequence
from typing import Any

from torpor.engine.files import (
    bpfmap,
    device,
    epoll,
    eventfd,
    fanotify,
    fifo,
    inotify,
    iouring,
    memfd,
    mqueue,
    nsfs,
    pidfd,
    pipe,
    procfs,
    regular,
    signalfd,
    socketpath,
    terminal,
    timerfd,
    tun,
    unknown,
)
from torpor.engine.kind import FileKind
from torpor.engine.sockets import inet, netlink, other, packet, unix

FILE_KINDS: Sequence[FileKind[Any]] = (
    eventfd.KIND,
    signalfd.KIND,
    timerfd.KIND,
    pipe.KIND,
    fifo.KIND,
    tun.KIND,  # before the sockets, which may have its addresses
    unix.KIND,
    inet.KIND,
    netlink.KIND,
    packet.KIND,
    other.KIND,
    pidfd.KIND,
    bpfmap.KIND,
    iouring.KIND,
    memfd.KIND,
    procfs.KIND,
    nsfs.KIND,
    mqueue.KIND,
    device.KIND,
    socketpath.KIND,
    regular.KIND,
    terminal.KIND,
    unknown.KIND,
    inotify.KIND,  # after the files that it watches
    fanotify.KIND,
    epoll.KIND,  # last: watches what the others made
)

PLANNED_LAST = (unix.KIND.name, socketpath.KIND.name, epoll.KIND.name)
"""Kinds whose plans use what others have made: to send it, to open it by name, to watch it."""


def in_order_of_plans(kind: FileKind[Any]) -> int:
    """Sorts kinds: the last ones behind all others, in their order."""
    return PLANNED_LAST.index(kind.name) + 1 if kind.name in PLANNED_LAST else 0
