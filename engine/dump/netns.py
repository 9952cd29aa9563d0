# SPDX-License-Identifier: Apache-2.0
"""Sockets in a task's network namespace without entering it.

The stopped task is made to call socket(), the descriptor is fetched by pidfd_getfd and closed
again in the task within the same borrowing; so nothing of it is left, and no right to join a
namespace is needed.
"""

from collections.abc import Sequence

from torpor.engine import native
from torpor.engine.closing import Closing
from torpor.engine.dump.capture import Captured
from torpor.engine.kernel.remote import AddressSpace, Remote

SOCKET = (16, 3 | 0o2000000)
"""AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC"""


class NetnsSockets(Closing):
    """Makes sockets for the kinds that ask (`FdView.netlink`); the callers close them."""

    def __init__(self, alive: Sequence[Captured]) -> None:
        self._by_pid = {c.task.pid: c for c in alive}

    def get(self, pid: int, protocol: int) -> int:
        """A netlink socket in the network namespace of a task."""
        item = self._by_pid[pid]
        space = AddressSpace.find(pid, item.vmas)
        with Remote.safe(pid, space) as remote:
            fd = remote.call("socket", *SOCKET, protocol)
            pidfd = native.pidfd_open(pid)
            try:
                return native.pidfd_getfd(pidfd, fd)
            finally:
                import os

                os.close(pidfd)
                remote.call("close", fd)

    def close(self) -> None:
        """Make no more: the tasks run."""
        self._by_pid.clear()
